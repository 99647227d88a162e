"""Experiments on the library: ``python -m griffin.experiments NAME``. One folder for each question.

``common`` is what they share; ``paper``, ``speed``, ``quality``, ``tasks`` and ``tune`` ask one question each;
``report`` puts the answers on one page. Only ``griffin/__main__.py`` imports this package.
"""
