"""What ``/run`` is made of: places, a run on its way, and the two ways to its answer."""
