package pgproxy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
)

// A diary notes what it is told, and the letters that others see at that moment.
type diary struct {
	*bench
	lines []string
}

func (d *diary) Before(b *pgproxy.Batch, i int) {
	what := "end"
	if i < len(b.SQL) {
		what = strings.Fields(b.SQL[i])[0]
	}
	d.lines = append(d.lines, fmt.Sprintf("%s? %d", what, d.letters()))
}

func (d *diary) After(_ *pgproxy.Batch, _ int, answer string) { d.lines = append(d.lines, answer) }

// stepwise lets what is executed go stepwise.
func (b *bench) stepwise() *diary {
	d := &diary{bench: b}
	b.proxy.Decide(func(batch *pgproxy.Batch) pgproxy.Fault {
		if len(batch.SQL) == 0 {
			return pgproxy.Pass
		}
		return pgproxy.Stepwise(d)
	})
	return d
}

func (d *diary) read(want ...string) {
	d.Helper()
	if !slices.Equal(d.lines, want) {
		d.Errorf("got  %q\nwant %q", d.lines, want)
	}
	d.lines = nil
}

func TestABatchGoesStatementByStatement(t *testing.T) {
	b := newBench(t)
	conn := b.connect()
	insert, read := `INSERT INTO letter VALUES ($1)`, `SELECT text FROM letter WHERE text = $1`
	send := func(statements ...string) (got []string, err error) {
		batch := &pgx.Batch{}
		for _, sql := range statements {
			var args []any
			if strings.Contains(sql, "$1") {
				args = append(args, "a")
			}
			batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
				texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
				got = append(got, texts...)
				return err
			})
		}
		return got, conn.SendBatch(t.Context(), batch).Close()
	}
	d := b.stepwise()

	t.Run("in a transaction of its own", func(t *testing.T) {
		got, err := send(`BEGIN`, insert, read, `COMMIT`)
		b.want("error", err, nil)
		b.want("the client read", fmt.Sprint(got), "[a]")
		d.read("BEGIN? 0", "BEGIN", "INSERT? 0", "INSERT 0 1", "SELECT? 0", "SELECT 1", "COMMIT? 0", "COMMIT", "end? 1")
	})
	t.Run("committed by its end", func(t *testing.T) {
		got, err := send(insert, read)
		b.want("error", err, nil)
		b.want("the client read", fmt.Sprint(got), "[a a]")
		d.read("INSERT? 1", "INSERT 0 1", "SELECT? 1", "SELECT 2", "end? 1")
		b.want("letters", b.letters(), 2)
	})
	t.Run("after an error nothing is run", func(t *testing.T) {
		_, err := send(insert, `SELECT 1/0`, insert)
		b.want("an error", err != nil, true)
		d.read("INSERT? 2", "INSERT 0 1", "SELECT? 2", "ERROR 22012: division by zero")
		b.want("letters", b.letters(), 2)
	})
	t.Run("a simple query is one step", func(t *testing.T) {
		_, err := conn.Exec(t.Context(), `DELETE FROM letter`)
		b.want("error", err, nil)
		d.read("DELETE? 2", "DELETE 2")
		b.want("letters", b.letters(), 0)
	})
	t.Run("and the connection is as good as before", func(t *testing.T) {
		var n int
		b.want("error", conn.QueryRow(t.Context(), `SELECT $1::int`, 7).Scan(&n), nil)
		b.want("answer", n, 7)
		d.read("SELECT? 0", "SELECT 1", "end? 0")
	})
}
