"""``python workflow/reproduce.py OPTIONS``: Snakemake with these options, showing a line for each step that ends."""

import sys

import progress
from snakemake.cli import main
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

if __name__ == "__main__":
    registry = LoggerPluginRegistry()
    registry.register_plugin(f"{registry.module_prefix}steps", progress)
    main(["-s", "workflow/Snakefile", "--logger", "steps", *sys.argv[1:]])
