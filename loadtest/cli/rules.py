"""`ullage rules`: Prometheus rules that guard the number a run has signed."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
def rules(run_folder: Path) -> None:
    """Write the limits and alerts of RUN_FOLDER as Prometheus rules, and unit tests of them beside.

    Ends with the verdict's exit code where the run signed no number.
    """
    from loadtest.reporter.rule_tests import rules_test_yaml
    from loadtest.reporter.rules import rules_yaml
    from loadtest.reporter.saturation import observe
    from loadtest.reporter.verdict import judge
    from loadtest.results import load_results
    from loadtest.run_folder import RunFolder, replace_file

    folder = RunFolder.open(run_folder)
    manifest, prediction = folder.read_manifest(), folder.read_prediction()
    slots = None if prediction is None else prediction.n_slots
    verdict = judge(prediction, observe(load_results(folder), manifest, slots))
    path, tests = folder.rules_path("rules"), folder.rules_path("rules_test")
    replace_file(path, rules_yaml(verdict, manifest))
    replace_file(tests, rules_test_yaml(verdict, manifest, path.name))
    click.echo(f"{path}   check it with: promtool test rules {tests}")
