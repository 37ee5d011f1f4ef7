package smtpd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The control port, for curl as much as for programs:
//
//	POST /ok  /fail?code=554&at=rcpt  /hang  /late  /drop?n=3  /lose  /down
//	     each with n=COUNT, delay=DURATION and blind=true where wanted; answers the behaviour that now holds
//	GET  /arrived?id=MESSAGE-ID   {"arrived":true,"times":1}, or 503 while the server is blind
//	GET  /stats                   Stats
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{mode}", func(w http.ResponseWriter, r *http.Request) {
		b, err := decodeBehaviour(r.PathValue("mode"), r.URL.Query())
		if err == nil {
			err = b.check()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := s.Set(b); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, b)
	})
	mux.HandleFunc("GET /arrived", func(w http.ResponseWriter, r *http.Request) {
		id := trimID(r.URL.Query().Get("id"))
		if id == "" {
			http.Error(w, "id is missing", http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		blind, times := s.behaviour.Blind, s.box.accepted(id)
		s.mu.Unlock()
		if blind {
			http.Error(w, "nobody can tell at the moment", http.StatusServiceUnavailable)
			return
		}
		answer(w, arrival{Arrived: times > 0, Times: times})
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Stats()) })
	return mux
}

type arrival struct {
	Arrived bool `json:"arrived"`
	Times   int  `json:"times"` // accepted so often
}

// Stats counts all that was ever accepted.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.box.stats()
}

// serveControl listens on loopback only: whoever reaches this port can lose mail.
func (s *Server) serveControl(addr string) error {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("control port: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("control port: %q is not a loopback address", host)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("control port: %w", err)
	}
	s.control = "http://" + l.Addr().String()
	s.http = &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second}
	s.serving.Go(func() { _ = s.http.Serve(l) }) // ends with Close
	return nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client left: nobody to tell
}

func decodeBehaviour(mode string, q url.Values) (Behaviour, error) {
	b := Behaviour{Mode: Mode(mode), At: Stage(q.Get("at"))}
	for name := range q {
		var err error
		v := q.Get(name)
		switch name {
		case "at":
		case "n":
			b.N, err = strconv.Atoi(v)
		case "code":
			b.Code, err = strconv.Atoi(v)
		case "delay":
			b.Delay, err = time.ParseDuration(v)
		case "blind":
			b.Blind, err = strconv.ParseBool(v)
		default:
			err = fmt.Errorf("unknown parameter")
		}
		if err != nil {
			return b, fmt.Errorf("%s=%q: %w", name, v, err)
		}
	}
	return b, nil
}

func (b Behaviour) path() string {
	q := url.Values{"n": {strconv.Itoa(b.N)}, "delay": {b.Delay.String()}, "blind": {strconv.FormatBool(b.Blind)}}
	if b.Code != 0 {
		q.Set("code", strconv.Itoa(b.Code))
	}
	if b.At != "" {
		q.Set("at", string(b.At))
	}
	mode := b.Mode
	if mode == "" {
		mode = OK
	}
	return "/" + url.PathEscape(string(mode)) + "?" + q.Encode()
}

// Control speaks to the control port of a server, here or in another process.
type Control struct {
	URL string
}

// Set tells the server what to do, as [Server.Set] does.
func (c Control) Set(ctx context.Context, b Behaviour) error {
	return c.do(ctx, http.MethodPost, b.path(), &Behaviour{})
}

// Stats asks what the server ever accepted.
func (c Control) Stats(ctx context.Context) (Stats, error) {
	var st Stats
	err := c.do(ctx, http.MethodGet, "/stats", &st)
	return st, err
}

func (c Control) do(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, nil)
	if err != nil {
		return fmt.Errorf("ask mail server: %w", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask mail server: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 500))
		return fmt.Errorf("ask mail server: %s %s: %s: %s", method, path, res.Status, strings.TrimSpace(string(why)))
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		return fmt.Errorf("ask mail server: %s %s: %w", method, path, err)
	}
	return nil
}
