package admin_test

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// pages lists all that is missing of a type, a few at a time.
func (s *scene) pages(set *jobs.Set, jobType string, limit int) (all []string) {
	s.Helper()
	for p := (admin.Page{Limit: limit}); ; {
		m, err := admin.Missing(s.Context(), s.pool, set, jobType, p, 10*time.Second)
		s.ok(err)
		for _, e := range m.Entities {
			all = append(all, e.Entity)
		}
		if p.After = m.Next; p.After == "" {
			return all
		}
	}
}

func (s *scene) missing(set *jobs.Set, jobType string) (n admin.Count, nameless int64) {
	s.Helper()
	n, nameless, err := admin.CountMissing(s.Context(), s.pool, set, jobType, 10*time.Second)
	s.ok(err)
	return n, nameless
}

// drawSet has a source in Go that names these pages.
func drawSet(t *testing.T, pages ...string) *jobs.Set {
	t.Helper()
	set, err := jobs.NewSet(jobs.Job[draw]{Effect: jobs.Repeatable, Do: func(context.Context, draw) error { return nil },
		Source: jobs.Seq(func(_ context.Context, after string) iter.Seq2[draw, error] {
			return func(yield func(draw, error) bool) {
				for _, p := range pages {
					if (p > after || after == "") && !yield(draw{Page: p}, nil) {
						return
					}
				}
			}
		})})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A row whose entity is NULL or empty can never be done, and no list can show it: as
// something that is missing it would be looked for in vain.
func TestRowsOfASourceWithoutAnEntityAreToldAsThatAndAreNotMissing(t *testing.T) {
	s := newScene(t)
	w := s.worker("anna")
	mail := s.kind("mail", ledger.Repeatable, `SELECT e AS entity FROM unnest('{a,b,"",NULL,NULL}'::text[]) e`)
	s.complete(mail, w, "a", "b")
	if n, nameless := s.missing(nil, "mail"); n != (admin.Count{Is: admin.Exact}) || nameless != 3 {
		t.Errorf("%s are missing, %d have no entity", n, nameless)
	}
	if all := s.pages(nil, "mail", 2); len(all) > 0 {
		t.Errorf("listed are %q", all)
	}
	status := statusOf(t, s.pool, nil, admin.StatusOptions{})
	verdict, why := status.Verdict()
	if text := strings.Join(why, "; "); verdict != admin.Troubled || text != "the source of mail names 3 rows without an entity: it is NULL, or empty" {
		t.Errorf("%s: %s, %+v", verdict, text, status.Types)
	}

	s.kind("draw", ledger.Repeatable)
	set := drawSet(t, "", "", "x")
	if n, nameless := s.missing(set, "draw"); n.N != 1 || nameless != 2 {
		t.Errorf("of a source in Go %s are missing, %d have no entity", n, nameless)
	}
	if all := s.pages(set, "draw", 2); len(all) != 1 || all[0] != "x" {
		t.Errorf("of a source in Go are listed %q", all)
	}
}

func TestAnEntityThatIsNamedTwiceIsMissingOnce(t *testing.T) {
	s := newScene(t)
	s.kind("mail", ledger.Repeatable, `SELECT e AS entity, n AS source_version FROM unnest('{a,b,c}'::text[]) e CROSS JOIN generate_series(1, 3) n`)
	s.kind("draw", ledger.Repeatable)
	set := drawSet(t, "a", "a", "a", "b", "b", "b", "c", "c", "c")
	for _, jobType := range []string{"mail", "draw"} {
		if n, nameless := s.missing(set, jobType); n != (admin.Count{N: 3, Is: admin.Exact}) || nameless != 0 {
			t.Errorf("%s of %s are missing, %d have no entity", n, jobType, nameless)
		}
		for limit := 1; limit <= 5; limit++ {
			if all := fmt.Sprint(s.pages(set, jobType, limit)); all != "[a b c]" {
				t.Errorf("of %s, by %d, are listed %s", jobType, limit, all)
			}
		}
	}
	// Past the bound, where not all is looked at.
	for i, c := range []struct {
		source string
		want   admin.Count
	}{
		{`SELECT ((n + 1) / 2)::text AS entity FROM generate_series(1, 12000) n`, admin.Count{N: 6000, Is: admin.Exact}},
		{`SELECT ((n + 2) / 3)::text AS entity FROM generate_series(1, 60000) n`, admin.Count{N: 10_000, Is: admin.AtLeast}},
		{`SELECT n::text AS entity FROM generate_series(1, 12000) n`, admin.Count{N: 10_000, Is: admin.AtLeast}},
		{`SELECT NULL AS entity FROM generate_series(1, 12000) UNION ALL SELECT 'x'`, admin.Count{N: 1, Is: admin.Exact}},
	} {
		jobType := fmt.Sprint("many", i)
		s.kind(jobType, ledger.Repeatable, c.source)
		if n, _ := s.missing(nil, jobType); n != c.want {
			t.Errorf("%s: %s, %+v, want %+v", c.source, n, n, c.want)
		}
	}
}
