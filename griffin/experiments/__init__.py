"""Experiments on the library: ``python -m griffin.experiments NAME``. Each folder answers one question.

``common`` has the shared code. ``paper``, ``speed``, ``quality``, ``tasks`` and ``tune`` ask one question each, and
``report`` puts the answers on one page. Only ``griffin/__main__.py`` imports this package.
"""
