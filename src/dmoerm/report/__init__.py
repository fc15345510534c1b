"""report.html, one self-contained page from results files, and the model card.

files.py            read results files; write the page
results_kinds.py    the registry of kinds of results files
sections/           the section of each kind; a new kind is one new file
parts.py            contents that several sections share
view.py             the view data: tables, plots, texts
svg_plots.py        intervals and reliability;  kl_plots.py   rewards against √KL
page.py             render templates/
card.py             README.md of a checkpoint
"""

from .card import write_card
from .files import read_measured, report_html, write_file_report, write_folder_report, write_report

__all__ = ["read_measured", "report_html", "write_card", "write_file_report", "write_folder_report", "write_report"]
