"""Does the paper hold here? Each of its tables and figures has a module; that of Table 3 is ``speed.latency``.

A command keeps its name when its module has a clearer one: ``selection`` is ``strategies``, ``gating`` is
``concentration``. May import ``common`` and ``tasks``.
"""
