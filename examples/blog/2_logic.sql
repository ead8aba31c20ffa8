-- What the database does by itself.

CREATE FUNCTION blog.count_words(body text) RETURNS integer
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT coalesce(array_length(regexp_split_to_array(trim(body), '\s+'), 1), 0) $$;

CREATE FUNCTION blog.keep_word_count() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.word_count := blog.count_words(NEW.body);
    RETURN NEW;
END
$$;

CREATE TRIGGER keep_word_count
    BEFORE INSERT OR UPDATE OF body ON blog.tb_post
    FOR EACH ROW EXECUTE FUNCTION blog.keep_word_count();

CREATE VIEW blog.front_page AS
    SELECT post.id, post.title, post.slug, author.username, post.published_at,
           (SELECT count(*) FROM blog.tb_comment c WHERE c.post_id = post.id) AS comments,
           (SELECT array_agg(tag.name ORDER BY tag.name)
              FROM blog.tb_post_tag JOIN blog.tb_tag tag ON tag.id = tag_id
             WHERE post_id = post.id) AS tags
      FROM blog.tb_post post
      JOIN blog.tb_user author ON author.id = post.author_id
     WHERE post.status = 'published';
