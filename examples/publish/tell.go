package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A client repeats each request until it has an answer.
type client struct {
	url string
	net stage.LossyNetwork
}

func (c *client) send(ctx context.Context, method, path, body string) (*http.Response, error) {
	for try := 1; ; try++ {
		r, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		resp, err := (&http.Client{Transport: &c.net}).Do(r)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			return resp, resp.Body.Close()
		}
		if try == 20 || ctx.Err() != nil {
			return nil, err
		}
	}
}

// expect sends, and returns an error for any other status.
func (c *client) expect(ctx context.Context, status int, method, path, body string) (*http.Response, error) {
	resp, err := c.send(ctx, method, path, body)
	if err == nil && resp.StatusCode != status {
		err = fmt.Errorf("%s %s was answered %s, not %d", method, path, resp.Status, status)
	}
	return resp, err
}

// write is what an author does. Some think better of it, and delete the article again.
func (c *client) write(ctx context.Context, author string, deletes bool) error {
	if _, err := c.expect(ctx, http.StatusNoContent, "POST", "/posts", author+", as a whole"); err != nil {
		return err
	}
	resp, err := c.expect(ctx, http.StatusCreated, "POST", "/articles", "")
	if err != nil {
		return err
	}
	article := resp.Header.Get("Location")
	for _, text := range []string{"A", "A dra", author + ", final"} { // as it is typed
		if _, err := c.expect(ctx, http.StatusNoContent, "PUT", article, text); err != nil {
			return err
		}
	}
	if _, err := c.expect(ctx, http.StatusNoContent, "PUT", article+"/published", ""); err != nil {
		return err
	}
	if !deletes {
		return nil
	}
	for range 2 {
		if _, err := c.expect(ctx, http.StatusNoContent, "DELETE", article, ""); err != nil {
			return err
		}
	}
	// What comes late does not bring it back.
	_, err = c.expect(ctx, http.StatusNotFound, "PUT", article, "a late text")
	return err
}

// A proof is counted from the tables.
type proof struct {
	Authors, Deleted int64
	Sent, Lost       int64 // requests, answers

	Posts     int64 // of POST /posts
	Published int64
	Unlike    int64 // published, and not with an author's final text
	Drafts    int64 // empty ones that lost answers left
	Announced int64
	Twice     int64 // announced
	Asked     int64 // to announce
	Left      int64 // drafts, after the sweep
}

func tell(ctx context.Context, o stage.Options, authors int) (_ *proof, err error) {
	s, err := stage.Open(ctx, "publish", o)
	defer func() { s.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	if _, err = s.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	url, stop, err := stage.Serve(app{s.DB, s.Queue}.handler())
	if err != nil {
		return nil, err
	}
	defer stop()
	c := &client{url: url, net: stage.LossyNetwork{Lose: func(n int64) bool { return n%3 == 0 }}}
	s.Say("%d authors write articles. Every third answer is lost, and each client repeats its request until it has one.", authors)
	pr := &proof{Authors: int64(authors)}
	var writing errgroup.Group
	for i := range authors {
		deletes := i%4 == 0
		if deletes {
			pr.Deleted++
		}
		writing.Go(func() error { return c.write(ctx, fmt.Sprintf("Author %d", i+1), deletes) })
	}
	if err = writing.Wait(); err != nil {
		return nil, err
	}
	if pr.Asked, err = s.Int(ctx, `SELECT count(*) FROM oncemore.message WHERE type = 'announce'`); err != nil {
		return nil, err
	}
	pr.Sent, pr.Lost = c.net.Sent.Load(), c.net.Lost.Load()
	s.Say("%d requests, %d answers lost. The readers are to be told of %d articles, %d messages say.", pr.Sent, pr.Lost, authors, pr.Asked)

	if _, err = s.StartWorker(ctx); err == nil {
		err = s.Await(ctx, "all is announced", `SELECT count(*) = 0 FROM oncemore.message WHERE type = 'announce'`)
	}
	if err != nil {
		return nil, err
	}
	swept, err := s.DB.Exec(ctx, sweepSQL)
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	pr.Drafts = swept.RowsAffected()
	s.Say("Lost answers left %d empty drafts behind, which nobody has seen. They are swept away.", pr.Drafts)
	return pr, s.Count(ctx, []stage.Number{
		stage.Into(&pr.Posts, `SELECT count(*) FROM publish.post`),
		stage.Into(&pr.Published, `SELECT count(*) FROM publish.article WHERE published_at IS NOT NULL`),
		stage.Into(&pr.Unlike, `SELECT count(*) - count(DISTINCT text) FILTER (WHERE text LIKE 'Author %, final') FROM publish.article WHERE published_at IS NOT NULL`),
		stage.Into(&pr.Announced, `SELECT count(DISTINCT article_id) FROM publish.announcement`),
		stage.Into(&pr.Twice, `SELECT count(*) - count(DISTINCT article_id) FROM publish.announcement`),
		stage.Into(&pr.Left, `SELECT count(*) FROM publish.article WHERE published_at IS NULL`),
	}, nil)
}

func (p *proof) Write(w io.Writer) {
	fmt.Fprintf(w, "\n  authors                        %3d\n  posted whole                   %3d  so many more than authors are there twice, in public\n", p.Authors, p.Posts)
	fmt.Fprintf(w, "  written, published, deleted    %3d  twice each, with success\n  written, published             %3d\n  announced                      %3d  asked for %d times\n\n", p.Deleted, p.Published, p.Announced, p.Asked)
	fmt.Fprintf(w, "proof: %d of %d answers lost; of %d articles %d are published and %d deleted, each announced once; posted whole they are %d\n",
		p.Lost, p.Sent, p.Authors, p.Published, p.Deleted, p.Posts)
}

func (p *proof) Check() error {
	var c stage.Check
	c.Is(p.Lost > 0 && p.Posts > p.Authors, "of %d requests %d answers were lost, and %d posts are there: nothing was put to the test", p.Sent, p.Lost, p.Posts)
	c.Is(p.Deleted > 0 && p.Published == p.Authors-p.Deleted, "%d of %d articles are published, %d are deleted", p.Published, p.Authors, p.Deleted)
	c.Is(p.Unlike == 0, "%d published articles are not as their authors left them", p.Unlike)
	c.Is(p.Asked > p.Authors && p.Announced == p.Authors, "%d of %d articles are announced, asked for %d times", p.Announced, p.Authors, p.Asked)
	c.Is(p.Twice == 0, "%d were announced twice", p.Twice)
	c.Is(p.Left == 0, "%d drafts are left", p.Left)
	return c.Err()
}
