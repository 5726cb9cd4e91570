"""Selective tuning: measure gradient sensitivity, select elements, step only those. Knows nothing of any task.

:mod:`~aimfair.selective.sensitivity`, :mod:`~aimfair.selective.mask` and :mod:`~aimfair.selective.optim` hold what
``import aimfair`` offers.
"""
