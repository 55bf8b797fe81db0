"""A page of the documentation, run as the program that it is."""

import os
import runpy
import traceback
from contextlib import redirect_stderr, redirect_stdout


def run_page(folder):
    """Run ``page.py`` in its folder; what it prints, and the error that it ends with, are files there."""
    os.chdir(folder)
    with open("printed", "w") as printed, open("error", "w") as error, redirect_stdout(printed), redirect_stderr(error):
        try:
            runpy.run_path("page.py", run_name="__main__")
        except BaseException:
            traceback.print_exc()
            raise
