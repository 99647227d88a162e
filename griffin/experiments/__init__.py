"""The paper's experiments, one file each: ``python -m griffin.experiments NAME``. Nothing imports this package."""
