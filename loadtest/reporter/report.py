"""A run folder's rows -> its verdict and its three report files."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.reporter.lines import five_lines
from loadtest.reporter.pages import html_page, json_page, markdown_page
from loadtest.reporter.saturation import observe
from loadtest.reporter.soak import SoakVerdict, judge_soak
from loadtest.reporter.soak_pages import soak_html, soak_json, soak_lines, soak_markdown
from loadtest.reporter.verdict import Verdict, judge
from loadtest.results import finalise
from loadtest.run_folder import RunFolder, replace_file


def write_report(folder: RunFolder) -> Verdict:
    """Reads rows, manifest and prediction; writes report.html, .md and .json.

    Raises RunFolderError, RowFileError, DamagedSegmentError.
    """
    manifest, verdict = folder.read_manifest(), judge_run(folder)
    path = str(folder.root)
    replace_file(folder.report_path("html"), html_page(verdict, manifest, path))
    replace_file(folder.report_path("md"), markdown_page(verdict, manifest, path))
    replace_file(folder.report_path("json"), json_page(verdict, manifest))
    return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a person reads first of a report that was written, and the exit code that says the same."""

    lines: list[str]
    exit_code: int
    verdict: Verdict | None = None
    """None of a soak."""


def report_run(folder: RunFolder) -> Report:
    """The report of a sign-off, or of a soak. Raises as write_report does."""
    manifest, path = folder.read_manifest(), str(folder.report_path("html"))
    if manifest.is_soak:
        soaked = write_soak_report(folder)
        return Report(lines=soak_lines(soaked, path), exit_code=soaked.exit_code)
    verdict = write_report(folder)
    return Report(lines=five_lines(verdict, path), exit_code=verdict.exit_code, verdict=verdict)


def write_soak_report(folder: RunFolder) -> SoakVerdict:
    """As write_report, of a load with dips."""
    manifest, prediction = folder.read_manifest(), folder.read_prediction()
    verdict = judge_soak(finalise(folder), manifest, None if prediction is None else prediction.n_slots)
    path = str(folder.root)
    replace_file(folder.report_path("html"), soak_html(verdict, manifest, path))
    replace_file(folder.report_path("md"), soak_markdown(verdict, manifest, path))
    replace_file(folder.report_path("json"), soak_json(verdict, manifest))
    return verdict


def judge_run(folder: RunFolder) -> Verdict:
    """The verdict alone. Raises as write_report does."""
    manifest, prediction = folder.read_manifest(), folder.read_prediction()
    slots = None if prediction is None else prediction.n_slots
    return judge(prediction, observe(finalise(folder), manifest, slots, folder.read_search()))
