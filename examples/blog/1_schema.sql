-- A small blog with most features of real schemas.

CREATE SCHEMA blog;

CREATE TYPE blog.post_status AS ENUM ('draft', 'published', 'withdrawn');

CREATE TABLE blog.tb_user (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    username      text NOT NULL UNIQUE CHECK (username ~ '^[a-z][a-z0-9_]{2,30}$'),
    email         text NOT NULL UNIQUE CHECK (position('@' IN email) > 1),
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE blog.tb_post (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    author_id    bigint NOT NULL REFERENCES blog.tb_user ON DELETE CASCADE,
    title        text NOT NULL CHECK (title <> ''),
    slug         text NOT NULL UNIQUE,
    body         text NOT NULL,
    status       blog.post_status NOT NULL DEFAULT 'draft',
    word_count   integer NOT NULL DEFAULT 0,
    published_at timestamptz,
    CHECK ((status = 'published') = (published_at IS NOT NULL))
);

CREATE INDEX tb_post_author ON blog.tb_post (author_id);

CREATE TABLE blog.tb_comment (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    post_id    bigint NOT NULL REFERENCES blog.tb_post ON DELETE CASCADE,
    author_id  bigint REFERENCES blog.tb_user ON DELETE SET NULL,
    body       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX tb_comment_post ON blog.tb_comment (post_id);

CREATE TABLE blog.tb_tag (
    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE
);

CREATE TABLE blog.tb_post_tag (
    post_id bigint NOT NULL REFERENCES blog.tb_post ON DELETE CASCADE,
    tag_id  integer NOT NULL REFERENCES blog.tb_tag ON DELETE CASCADE,
    PRIMARY KEY (post_id, tag_id)
);
