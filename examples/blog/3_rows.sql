-- A few hundred rows, the same each time.

COPY blog.tb_user (username, email, password_hash, created_at) FROM stdin;
ada	ada@example.org	$2b$12$c0ffee00000000000000000000000000000000000000000000001	2024-01-01 09:00:00+00
grace	grace@example.org	$2b$12$c0ffee00000000000000000000000000000000000000000000002	2024-01-02 09:00:00+00
edgar	edgar@example.org	$2b$12$c0ffee00000000000000000000000000000000000000000000003	2024-01-03 09:00:00+00
\.

INSERT INTO blog.tb_user (username, email, password_hash, created_at)
SELECT 'reader_' || n, 'reader' || n || '@example.org', md5('reader' || n),
       timestamptz '2024-02-01 00:00:00+00' + n * interval '1 day'
  FROM generate_series(1, 37) AS n;

INSERT INTO blog.tb_tag (name)
VALUES ('databases'), ('testing'), ('python'), ('history'), ('weather');

INSERT INTO blog.tb_post (author_id, title, slug, body, status, published_at)
SELECT 1 + n % 3, 'Post number ' || n, 'post-' || n,
       repeat('Words about subject ' || n || '. ', 1 + n % 7),
       CASE WHEN n % 5 = 0 THEN 'draft' ELSE 'published' END::blog.post_status,
       CASE WHEN n % 5 <> 0 THEN timestamptz '2024-03-01 12:00:00+00' + n * interval '1 hour' END
  FROM generate_series(1, 60) AS n;

INSERT INTO blog.tb_post_tag (post_id, tag_id)
SELECT n, 1 + n % 5 FROM generate_series(1, 60) AS n
UNION
SELECT n, 1 + n % 2 FROM generate_series(1, 60) AS n;

INSERT INTO blog.tb_comment (post_id, author_id, body, created_at)
SELECT 1 + n % 60, 4 + n % 37, 'Comment ' || n,
       timestamptz '2024-04-01 00:00:00+00' + n * interval '7 minutes'
  FROM generate_series(1, 180) AS n;
