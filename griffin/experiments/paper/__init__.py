"""Does it hold what the paper says? One module for each of its tables and figures, except Table 3 (``speed.latency``).

A command keeps its name when its module has a clearer one: ``selection`` is ``strategies``, ``gating`` is
``concentration``. May import ``common`` and ``tasks``.
"""
