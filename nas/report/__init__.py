"""The report of an experiment, one HTML file, and its front as a picture."""

from nas.report.picture import front_picture
from nas.report.write import write_report

__all__ = ["front_picture", "write_report"]
