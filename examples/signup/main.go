// Command signup is POST /users under a request id: the form that a page was served with has
// an id, and a request that comes again under it is answered as the first time.
//
//	go run ./examples/signup
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

const schema = `
CREATE SCHEMA IF NOT EXISTS signup;
CREATE TABLE IF NOT EXISTS signup.session (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- its public name
    secret  text NOT NULL UNIQUE,                            -- the cookie: who has it is in the session
    ends_at timestamptz NOT NULL DEFAULT clock_timestamp() + interval '30 minutes'
);
CREATE TABLE IF NOT EXISTS signup.users (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  text NOT NULL,
    email text NOT NULL UNIQUE    -- the user's own key, which outlives all sessions
)`

const sessionLife = 30 * time.Minute

// An app is the server.
type app struct {
	db  *pgxpool.Pool
	ran atomic.Int64 // how often the handler of POST /users did
}

// handler has two routes: the form, which is where a request id comes from, and POST /users.
func (a *app) handler(ctx context.Context) (http.Handler, func(), error) {
	keys, err := ledgerhttp.New(a.db, ledgerhttp.Config{Scope: a.session})
	if err != nil {
		return nil, nil, err
	}
	users, err := keys.Guard(ctx, ledgerhttp.Operation{
		Name:     "POST /users",
		CheckKey: issued,
		Wait:     5 * time.Second, // a double click: the second waits for the first, and gets its answer
		TTL:      sessionLife,     // nobody can ask for an answer when the session is over
	}, http.HandlerFunc(a.signUp))
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /users/new", a.form)
	mux.Handle("POST /users", users)
	return mux, func() { _ = keys.Close(context.WithoutCancel(ctx)) }, nil
}

// A page is what the browser has of the form: the cookie, and the id of the request to come.
type page struct{ Session, RequestID string }

// form begins a session, and makes an id for the request that the form will be.
func (a *app) form(w http.ResponseWriter, r *http.Request) {
	p := page{rand.Text(), rand.Text()}
	if _, err := a.db.Exec(r.Context(), `/* signup: begin session */ INSERT INTO signup.session (secret) VALUES ($1)`, p.Session); err != nil {
		http.Error(w, "try again", http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(p)
}

// session tells whose the request is: the session's number, for the fact shows it for ever, and
// the cookie is a secret. It is part of the request id's identity, so an id means nothing in
// another session, and nothing any more when its own is over.
func (a *app) session(r *http.Request) (id string, err error) {
	cookie, err := r.Cookie("session")
	if err != nil {
		return "", err
	}
	err = a.db.QueryRow(r.Context(), `SELECT id::text FROM signup.session WHERE secret = $1 AND ends_at > clock_timestamp()`, cookie.Value).Scan(&id)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("%w: %w", ledgerhttp.ErrUnavailable, err) // the caller may well be known
	}
	return id, err
}

var requestID = regexp.MustCompile(`^[A-Z2-7]{26}$`) // of rand.Text

func issued(key string) error {
	if !requestID.MatchString(key) {
		return errors.New("this is no request id that a form of ours had")
	}
	return nil
}

// A user is the body of POST /users.
type user struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

// signUp knows nothing of repeats. What it writes, the fact that this request was done, and its
// answer commit together.
func (a *app) signUp(w http.ResponseWriter, r *http.Request) {
	a.ran.Add(1)
	var u user
	if err := json.NewDecoder(r.Body).Decode(&u); err != nil || u.Name == "" || u.Email == "" {
		http.Error(w, "a user has a name and an email address", http.StatusBadRequest)
		return
	}
	var id int64
	err := ledgerhttp.Tx(r.Context()).QueryRow(r.Context(), addSQL, u.Name, u.Email).Scan(&id)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		http.Error(w, "this address has an account", http.StatusConflict)
	case err != nil:
		http.Error(w, "try again", http.StatusInternalServerError)
	default:
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "welcome, user %d", id)
	}
}

const addSQL = `/* signup: add user */ INSERT INTO signup.users (name, email) VALUES ($1, $2) ON CONFLICT (email) DO NOTHING RETURNING id`

func main() {
	stage.Play(func(ctx context.Context) (*proof, error) {
		return tell(ctx, stage.Options{Out: os.Stdout, NoSync: true})
	})
}
