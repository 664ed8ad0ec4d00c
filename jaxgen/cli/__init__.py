"""The commands ``train``, ``sample``, ``score``, ``predict``, ``evaluate`` and ``replay``."""
