"""report.html: one self-contained page from results files.

files.py     which file is what; the page of some files, of a folder
card.py      the model card: README.md of a model's folder
page.py      the page itself: sections, tables, style (report.css)
parts.py     what sections share: cells, capabilities, router, probabilities, length
plots.py     intervals and reliability;  curves.py  rewards against √KL
run.py, comparison.py, best_of_n.py, policies.py      a section each
"""

from .card import write_card
from .files import read_measured, report_html, write_file_report, write_folder_report, write_report

__all__ = ["read_measured", "report_html", "write_card", "write_file_report", "write_folder_report", "write_report"]
