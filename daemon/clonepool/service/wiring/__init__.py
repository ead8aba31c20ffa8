"""Makes every part of the daemon and gives each part what it needs. `app` starts and stops them.

Nothing is assigned to a part after it was made, and making one starts nothing. `daemon` is the
entrance; `parts` has the structs that go from one file to the next.
"""
