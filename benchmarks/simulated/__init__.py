"""A federation under simulated time: real state machines, a network and processes made of chance.

The controller's side is the real hub and exchange, a site's side the real session; connections,
clocks, processes and the store of snapshots are simulated. One seed decides everything that
happens: delays, broken and silent connections, duplicates, reordering, partitions, sites and
controllers that die and come back, controllers that go on after they were thought dead.
"""
