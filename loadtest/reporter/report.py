"""A run folder's rows -> its verdict and its three report files."""

from __future__ import annotations

from loadtest.reporter.pages import html_page, json_page, markdown_page
from loadtest.reporter.saturation import observe
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


def judge_run(folder: RunFolder) -> Verdict:
    """The verdict alone. Raises as write_report does."""
    manifest, prediction = folder.read_manifest(), folder.read_prediction()
    slots = None if prediction is None else prediction.n_slots
    return judge(prediction, observe(finalise(folder), manifest, slots, folder.read_search()))
