package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// A browser sends forms over a network that loses answers.
type browser struct {
	url string
	net stage.LossyNetwork
}

// An answer is what the browser shows.
type answer struct {
	status   int
	body     string
	replayed bool
	tries    int
}

// send sends the form until there is an answer, every time under the id that it has.
func (b *browser) send(ctx context.Context, p page, u user) (a answer, err error) {
	body, err := json.Marshal(u)
	if err != nil {
		return a, err
	}
	client := http.Client{Transport: &b.net}
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url+"/users", bytes.NewReader(body))
		if err != nil {
			return a, err
		}
		r.Header.Set(ledgerhttp.Header, p.RequestID)
		r.AddCookie(&http.Cookie{Name: "session", Value: p.Session})
		a.tries++
		resp, err := client.Do(r)
		if err != nil {
			if a.tries == 10 || ctx.Err() != nil {
				return a, err
			}
			continue // nobody knows whether it was done: once more
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		a.status, a.body, a.replayed = resp.StatusCode, string(text), resp.Header.Get(ledgerhttp.Replayed) == "true"
		return a, err
	}
}

// open gets the form.
func (b *browser) open(ctx context.Context) (p page, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/users/new", nil)
	if err != nil {
		return p, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	return p, json.NewDecoder(resp.Body).Decode(&p)
}

// A proof is counted from the tables, but for what the browser and the handler saw.
type proof struct {
	Sent, Lost int64
	Ran        int64 // the handler
	Users      int64 // of this play
	Facts      int64 // requests that were done, of its sessions
	Shown      int64 // of them, those whose entity shows a cookie

	Repeated   answer   // the first two answers were lost
	Double     []answer // of one click, that was eight
	OtherBody  answer
	Over       answer // the session was
	NewSession answer // the same id and user, in another session
	Stranger   answer // the same id, another user, in another session
}

func tell(ctx context.Context, o stage.Options) (_ *proof, err error) {
	s, err := stage.Open(ctx, "signup", o)
	defer func() { s.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	if _, err = s.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	a := &app{db: s.DB}
	h, closeKeys, err := a.handler(ctx)
	if err != nil {
		return nil, err
	}
	defer closeKeys()
	url, stop, err := stage.Serve(h)
	if err != nil {
		return nil, err
	}
	defer stop()
	b := &browser{url: url, net: stage.LossyNetwork{Lose: func(n int64) bool { return n <= 2 }}}

	// Three people, whose addresses no earlier play has used.
	var pages [3]page
	for i := range pages {
		if pages[i], err = b.open(ctx); err != nil {
			return nil, fmt.Errorf("open the form: %w", err)
		}
	}
	at := "@" + strings.ToLower(pages[0].RequestID) + ".example"
	ada, ben, cleo := user{"Ada", "ada" + at}, user{"Ben", "ben" + at}, user{"Cleo", "cleo" + at}

	pr := &proof{}
	if pr.Repeated, err = b.send(ctx, pages[0], ada); err != nil {
		return nil, err
	}
	s.Say("Ada signs up. Two answers are lost; the third try is answered %q, as the first was (replayed: %t).", pr.Repeated.body, pr.Repeated.replayed)

	if pr.Double, err = b.sendAtOnce(ctx, 8, pages[1], ben); err != nil {
		return nil, err
	}
	s.Say("Ben's button sends eight at once: all are answered %q.", pr.Double[0].body)

	if pr.OtherBody, err = b.send(ctx, pages[1], cleo); err != nil {
		return nil, err
	}
	s.Say("Under Ben's request id comes another body: %d.", pr.OtherBody.status)

	if _, err = s.DB.Exec(ctx, `/* signup: end session */ UPDATE signup.session SET ends_at = clock_timestamp() WHERE secret = $1`, pages[0].Session); err != nil {
		return nil, fmt.Errorf("end Ada's session: %w", err)
	}
	if pr.Over, err = b.send(ctx, pages[0], ada); err != nil {
		return nil, err
	}
	again := page{pages[2].Session, pages[0].RequestID} // a copied id
	if pr.NewSession, err = b.send(ctx, again, ada); err != nil {
		return nil, err
	}
	s.Say("Ada's session is over, and her request id with it: %d. In another session it is another request: %d, %s.",
		pr.Over.status, pr.NewSession.status, strings.TrimSpace(pr.NewSession.body))
	if pr.Stranger, err = b.send(ctx, page{pages[2].Session, pages[1].RequestID}, cleo); err != nil {
		return nil, err
	}
	s.Say("Cleo happens to have Ben's request id, in a session of her own: %d, %s.", pr.Stranger.status, pr.Stranger.body)

	secrets := []string{pages[0].Session, pages[1].Session, pages[2].Session}
	pr.Sent, pr.Lost, pr.Ran = b.net.Sent.Load(), b.net.Lost.Load(), a.ran.Load()
	return pr, s.Count(ctx, []stage.Number{
		stage.Into(&pr.Users, `SELECT count(*) FROM signup.users WHERE right(email, length($1)) = $1`, at),
		stage.Into(&pr.Facts, factsSQL, secrets),
		stage.Into(&pr.Shown, shownSQL, secrets),
	}, nil)
}

// A fact is about the request: POST, the session's number, the request id.
const factsSQL = `
SELECT count(*) FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type
WHERE t.name = 'POST /users' AND split_part(l.entity, ' ', 2) IN (SELECT s.id::text FROM signup.session s WHERE s.secret = ANY ($1))`

// A fact stays, in every backup too, and a cookie is for its owner alone.
const shownSQL = `SELECT count(*) FROM oncemore.ledger l, unnest($1::text[]) AS secret WHERE strpos(l.entity, secret) > 0`

// sendAtOnce is a button without patience.
func (b *browser) sendAtOnce(ctx context.Context, n int, p page, u user) ([]answer, error) {
	answers, errs := make([]answer, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { answers[i], errs[i] = b.send(ctx, p, u) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return answers, nil
}

func (p *proof) Write(w io.Writer) {
	fmt.Fprintf(w, "\nproof: %d requests, %d answers lost; the handler ran %d times for %d requests that were done, and there are %d users\n",
		p.Sent, p.Lost, p.Ran, p.Facts, p.Users)
}

func (p *proof) Check() error {
	var c stage.Check
	c.Is(p.Repeated.status == http.StatusCreated && p.Repeated.replayed && p.Repeated.tries == 3, "Ada's third try was answered %+v", p.Repeated)
	first := 0
	for _, a := range p.Double {
		c.Is(a.status == http.StatusCreated && a.body == p.Double[0].body, "of Ben's tries one was answered %+v", a)
		if !a.replayed {
			first++
		}
	}
	c.Is(len(p.Double) > 1 && first == 1, "%d of Ben's %d tries were the first", first, len(p.Double))
	c.Is(p.OtherBody.status == http.StatusUnprocessableEntity, "another body was answered %+v", p.OtherBody)
	c.Is(p.Over.status == http.StatusUnauthorized, "after her session Ada was answered %+v", p.Over)
	c.Is(p.NewSession.status == http.StatusConflict && !p.NewSession.replayed, "in another session Ada was answered %+v", p.NewSession)
	c.Is(p.Stranger.status == http.StatusCreated && !p.Stranger.replayed, "Cleo was answered %+v", p.Stranger)
	c.Is(p.Sent == int64(len(p.Double))+7 && p.Lost == 2, "%d requests were sent, %d answers lost", p.Sent, p.Lost)
	c.Is(p.Users == 3, "there are %d users, not 3", p.Users)
	c.Is(p.Ran == 4 && p.Facts == 4, "the handler ran %d times for %d requests, not 4 for 4", p.Ran, p.Facts)
	c.Is(p.Shown == 0, "the ledger shows the cookie of %d requests", p.Shown)
	return c.Err()
}
