"""Selective tuning: measure gradient sensitivity, select elements, update only those.

Independent of any task and of the rest of aimfair.

:mod:`~aimfair.selective.sensitivity`, :mod:`~aimfair.selective.mask` and :mod:`~aimfair.selective.optim` hold what
``import aimfair`` offers.
"""
