package pgproxy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A Batch is what a client sends up to a Sync, or one simple Query. Statements that are
// only prepared do not count: nothing happens by them. It is not to be changed.
type Batch struct {
	Conn int // the number of the connection, from 1, in the order they came to the proxy
	N    int // the number of the batch on its connection, from 1

	SQL   []string // the statements that are executed, in order; often none, while pgx prepares
	Names []string // their names ([Name]), in the same order; empty for one without

	// Tx is the names of the statements that were executed before in the transaction that goes
	// on, for those that have one: what a COMMIT that comes alone is to commit.
	Tx []string

	// Writes tells whether something changes by it: a statement writes ([Writes]), or it is
	// the COMMIT of a transaction in which one did.
	Writes bool
}

// Has tells whether a statement of this name is executed.
func (b *Batch) Has(name string) bool { return slices.Contains(b.Names, name) }

// String is the names of the statements, without begin and commit where there are others:
// what a test may call the batch.
func (b *Batch) String() string {
	var all, essential []string
	for _, name := range b.Names {
		if name == "" {
			continue
		}
		all = append(all, name)
		if name != "begin" && name != "commit" {
			essential = append(essential, name)
		}
	}
	if len(essential) == 0 {
		essential = all
	}
	return strings.Join(essential, ", ")
}

var (
	leading = regexp.MustCompile(`^\s*/\*\s*(.*?)\s*\*/`)
	control = regexp.MustCompile(`(?i)^\s*(begin|commit|rollback)\b`)
	writing = regexp.MustCompile(`(?i)\b(insert\s+into|update\s+(only\s+)?[\w."]+(\s+(as\s+)?\w+)?\s+set|delete\s+from|merge\s+into|truncate|nextval\s*\(|setval\s*\()`)
)

// Name is the name that a statement has in its leading comment. For transaction control
// it is the command, in small letters: begin, commit, rollback.
func Name(sql string) string {
	if m := leading.FindStringSubmatch(sql); m != nil {
		return m[1]
	}
	return strings.ToLower(control.FindString(strings.TrimSpace(sql)))
}

// Writes tells whether a statement changes rows or sequences, by the look of it. It may
// take a word in a text or a comment for more than it is.
func Writes(sql string) bool { return writing.MatchString(sql) }

// A script follows what one client prepares, binds and executes.
type script struct {
	conn, n    int
	statements map[string]string // SQL by the name of the statement
	portals    map[string]string // SQL by the name of the portal
	open       bool              // a transaction goes on, by the look of it
	wrote      bool              // and something was written in it
	tx         []string          // the names of the statements in it
	batch      *Batch            // that is being sent
	ends       []int             // of the executed statements, as offsets into raw
	raw        []byte            // its bytes
}

func newScript(conn int) *script {
	s := &script{conn: conn, statements: map[string]string{}, portals: map[string]string{}}
	s.next()
	return s
}

func (s *script) next() {
	s.n++
	s.batch, s.ends, s.raw = &Batch{Conn: s.conn, N: s.n, Tx: slices.Clone(s.tx)}, nil, nil
}

// add takes one message, header included, and tells whether it ends the batch.
func (s *script) add(frame []byte) (whole bool, err error) {
	s.raw = append(s.raw, frame...)
	body := frame[5:]
	switch frame[0] {
	case 'P':
		var m pgproto3.Parse
		if err = m.Decode(body); err == nil {
			s.statements[m.Name] = m.Query
		}
	case 'B':
		var m pgproto3.Bind
		if err = m.Decode(body); err == nil {
			s.portals[m.DestinationPortal] = s.statements[m.PreparedStatement]
		}
	case 'E':
		var m pgproto3.Execute
		if err = m.Decode(body); err == nil {
			s.execute(s.portals[m.Portal])
		}
	case 'C':
		var m pgproto3.Close
		if err = m.Decode(body); err == nil && m.ObjectType == 'S' {
			delete(s.statements, m.Name)
		}
	case 'Q':
		var m pgproto3.Query
		if err = m.Decode(body); err == nil {
			s.execute(m.String)
		}
		whole = true
	case 'S':
		whole = true
	}
	if err != nil {
		return false, fmt.Errorf("message %q of a client: %w", frame[0], err)
	}
	return whole, nil
}

func (s *script) execute(sql string) {
	b := s.batch
	name := Name(sql)
	b.SQL, b.Names = append(b.SQL, sql), append(b.Names, name)
	s.ends = append(s.ends, len(s.raw))
	switch name {
	case "begin", "rollback", "commit":
		b.Writes = b.Writes || name == "commit" && s.wrote
		s.open, s.wrote, s.tx = name == "begin", false, nil
		return
	}
	writes := Writes(sql)
	b.Writes = b.Writes || writes
	if s.open {
		s.wrote = s.wrote || writes
		if name != "" {
			s.tx = append(s.tx, name)
		}
	}
}

// part is the bytes of the first n statements.
func (s *script) part(n int) []byte {
	if n = min(n, len(s.ends)); n <= 0 {
		return nil
	}
	return s.raw[:s.ends[n-1]]
}
