package ledgerhttp_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// manyAnswers makes a table of answers that is read in more than a minute, every second one expired,
// and returns how many are not.
func (s *shop) manyAnswers() (live int) {
	s.Helper()
	const enough = 5 * ledgerhttp.StretchPages * ledgerhttp.StretchesEach // rows, four to a page
	if _, err := s.pool.Exec(s.Context(), `
INSERT INTO oncemore.response (job_type, entity, epoch, status, headers, body, expires_at)
SELECT 1, i, 0, 200, '{}', convert_to(repeat('tea ', 400), 'UTF8'), now() + (i % 2 * 2 - 1) * interval '1 hour' FROM generate_series(1, $1) AS i`, enough); err != nil {
		s.Fatal(err)
	}
	return enough / 2
}

func (s *shop) answers(where string) (n int) {
	s.Helper()
	if err := s.pool.QueryRow(s.Context(), `SELECT count(*) FROM oncemore.response WHERE `+where).Scan(&n); err != nil {
		s.Fatal(err)
	}
	return n
}

func TestEveryExpiredAnswerIsFoundAMinuteAfterAnother(t *testing.T) {
	s := newShop(t)
	live := s.manyAnswers()
	if err := ledgerhttp.Tidy(s.keys, t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := s.answers(`expires_at < now()`); left == 0 || left == live {
		t.Errorf("%d of %d are left after the first minute: it was to read a part", left, live)
	}
	if err := ledgerhttp.Tidy(s.keys, t.Context()); err != nil {
		t.Fatal(err)
	}
	s.want("expired answers left", s.answers(`expires_at < now()`), 0)
	s.want("others", s.answers(`expires_at > now()`), live)
}

func TestExpireDeletesAllThatHasExpiredAndNothingElse(t *testing.T) {
	s := newShop(t)
	live := s.manyAnswers()
	n, err := s.keys.Expire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.want("deleted", int(n), live) // as many
	s.want("expired answers left", s.answers(`expires_at < now()`), 0)
	s.want("others", s.answers(`expires_at > now()`), live)
}

// A statement reads its stretch of the table, whatever the planner thinks of the rest.
func TestAStretchIsReadByItself(t *testing.T) {
	s := newShop(t)
	s.manyAnswers()
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		conn, err := s.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if _, err := conn.Exec(t.Context(), `SET plan_cache_mode = `+mode+`; DEALLOCATE ALL; PREPARE expire AS `+ledgerhttp.ExpireSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		rows, _ := conn.Query(t.Context(), fmt.Sprintf(`EXPLAIN EXECUTE expire('(0,0)', '(%d,0)', %[1]d)`, ledgerhttp.StretchPages), pgx.QueryExecModeSimpleProtocol)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		if plan := strings.Join(lines, "\n"); !strings.Contains(plan, "Tid Range Scan") || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s:\n%s", mode, plan)
		}
		conn.Conn().Close(t.Context())
	}
}
