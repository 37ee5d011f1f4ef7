package pgproxy

import "github.com/jackc/pgx/v5/pgproto3"

// A Gate says when each statement of a batch may go to the server. See [Stepwise].
type Gate interface {
	// Before is called before statement i of b, from 0, is forwarded, and may block: the
	// server has been through with all that came before it, and waits. i is len(b.SQL)
	// before the end of the batch (its Sync), which commits what is in no explicit
	// transaction; a simple Query has no such end.
	Before(b *Batch, i int)

	// After is called when the server was through with statement i of b, before the client
	// hears of it: answer is its command tag, such as "INSERT 0 1", or its error. After an
	// error the rest of the batch is not run, and Before is not asked about it.
	After(b *Batch, i int, answer string)
}

// Stepwise forwards the batch statement by statement, each when gate lets it go and with a
// Flush behind it, so that what the server does at each is seen before the next. It
// changes nothing for the client but the time that passes; a server may be as slow between
// any two statements that it was sent together. What is only prepared goes with the
// statement after it.
func Stepwise(gate Gate) Fault { return Fault{kind: stepwise, steps: &stepping{gate: gate}} }

// stepping is one batch that goes stepwise.
type stepping struct {
	gate     Gate
	batch    *Batch
	answered chan bool // for each statement, whether the server goes on with the next
	n        int       // owned by the goroutine that reads the server: statements it was through with
}

// step forwards the batch that c.script holds, and tells whether the connection is still
// there.
func (c *conn) step(f Fault) bool {
	s, raw, ends := f.steps, c.script.raw, c.script.ends
	s.batch, s.answered = c.script.batch, make(chan bool, len(ends)+1)
	c.mu.Lock()
	c.waiting = append(c.waiting, f)
	c.mu.Unlock()
	from, simple := 0, len(ends) > 0 && ends[len(ends)-1] == len(raw)
	flush, _ := (&pgproto3.Flush{}).Encode(nil)
	for i, end := range ends {
		s.gate.Before(s.batch, i)
		piece := raw[from:end:end]
		if !simple {
			piece = append(piece, flush...)
		}
		if !c.pass() || !c.write(piece) {
			return false
		}
		from = end
		select {
		case goesOn := <-s.answered:
			if goesOn {
				continue
			}
		case <-c.done:
			return false
		}
		return c.write(raw[from:])
	}
	if simple {
		return true
	}
	s.gate.Before(s.batch, len(ends))
	return c.pass() && c.write(raw[from:])
}

// answer takes one message of the server before the client gets it.
func (s *stepping) answer(frame []byte) {
	var text string
	goesOn := true
	switch frame[0] {
	case 'C':
		var m pgproto3.CommandComplete
		if m.Decode(frame[5:]) == nil {
			text = string(m.CommandTag)
		}
	case 'I':
		text = "empty"
	case 's':
		text = "suspended"
	case 'E':
		goesOn = false
		var m pgproto3.ErrorResponse
		if m.Decode(frame[5:]) == nil {
			text = m.Severity + " " + m.Code + ": " + m.Message
		}
	default:
		return
	}
	s.gate.After(s.batch, s.n, text)
	s.n++
	select {
	case s.answered <- goesOn:
	default: // more answers than statements: a simple Query of several
	}
}
