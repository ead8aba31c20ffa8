"""PostgreSQL as the pool sees it: all SQL, and the only import of asyncpg."""
