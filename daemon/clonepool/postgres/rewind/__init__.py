"""Puts a returned clone back into its generation's state, at a cost that follows the changes.

The WAL names every page of every relation before it is changed. So a rewind reads the WAL, compares
the pages that were written to with what the generation holds there, and puts back what differs. A
clone that cannot be put back with certainty is refused (`CannotRewindError`) and recreated.

In the order of a rewind:

1. `inspection` locks the former holder out, lists the sessions and reads the WAL up to now.
   `wal_reader` reads it in pieces (by `walinspect`) into `touched_pages`; `shared_catalogs` and
   `database_facts` are what is known of a clone without connecting to it.
2. `rewinder` compares that with the clone's last clean state (`clean_state`) and runs a
   `rewind_pass`: `changes` sorts the touched files into tables, sequences and catalogs (by
   `relations`), `checks` refuses what cannot be put back, `cost` what would take longer than a new
   clone.
3. `restore` reads which rows are on the touched pages (`row_locations`), compares them with where
   they should be (`layout`), and puts them back (`restore_sql`). The rows come from the
   generation's baseline (`baseline`, kept by `baselines`) or from its reference clone
   (`reference`). `planner_statistics` are put back too.
4. One in `verify_every` clones is compared with its generation in full (`verify`, `digests`,
   `indexes`).

`settings` has those of the sessions that do this. `unstable_expressions` and `untrusted_code` find
tables that cannot be put back; `adopted` locates the rows of a clone that an earlier daemon
rewound.

Some words have one meaning throughout. A row is *old* if it was there when the clone was last
clean, and *fresh* if a younger transaction wrote it. The *original* ctid of a row is its ctid in
the generation.
"""
