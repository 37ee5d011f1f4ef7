package smtpd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"time"
)

// message is one line of the file: one acceptance.
type message struct {
	ID      string    `json:"id"` // the Message-ID without its angle brackets
	To      []string  `json:"to"`
	Subject string    `json:"subject"`
	At      time.Time `json:"at"`
	Repeat  bool      `json:"repeat,omitempty"` // known by its Message-ID, and therefore not in the mailbox again
	Text    string    `json:"text"`
}

// Stats are counted over all that the server ever accepted, restarts included.
type Stats struct {
	Accepted       int       `json:"accepted"`        // messages stored, each time; also when the client never got its 250
	Distinct       int       `json:"distinct"`        // Message-IDs among them
	Repeats        int       `json:"repeats"`         // recognised by Message-ID and kept out of the mailbox (Options.Dedupe)
	DeliveredTwice int       `json:"delivered_twice"` // Message-IDs that are in the mailbox more than once
	SameMailTwice  int       `json:"same_mail_twice"` // pairs of recipient and subject that are in the mailbox more than once, whatever their Message-ID
	Last           time.Time `json:"last,omitzero"`   // when the last one was stored
	IDs            []string  `json:"ids"`             // the distinct Message-IDs, sorted
}

// mailbox is the file and what must be known of it. Its owner serialises all calls.
type mailbox struct {
	file   *os.File // nil: in memory only
	times  map[string]int
	copies map[string]int
	mails  map[[2]string]int // by recipient and subject
	total  int
	last   time.Time
}

// openMailbox reads what is there. A last line without its end was being written when the
// machine stopped, before any 250: it was never accepted, and goes.
func openMailbox(path string) (*mailbox, error) {
	b := &mailbox{times: map[string]int{}, copies: map[string]int{}, mails: map[[2]string]int{}}
	if path == "" {
		return b, nil
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	b.file = file
	if err := b.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	return b, nil
}

func (b *mailbox) load() error {
	text, err := io.ReadAll(b.file)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1
	if whole < len(text) {
		if err := b.file.Truncate(int64(whole)); err != nil {
			return err
		}
	}
	n := 0
	for line := range bytes.Lines(text[:whole]) {
		n++
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		b.count(m)
	}
	return nil
}

// add stores a message, or returns an error and has stored nothing.
func (b *mailbox) add(m message) error {
	if b.file != nil {
		line, err := json.Marshal(m)
		if err != nil {
			return err
		}
		end, err := b.file.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if _, err := b.file.Write(append(line, '\n')); err != nil {
			return errors.Join(err, b.file.Truncate(end)) // half a line would spoil the next one
		}
	}
	b.count(m)
	return nil
}

func (b *mailbox) count(m message) {
	b.total++
	b.last = m.At
	b.times[m.ID]++
	if m.Repeat {
		return
	}
	b.copies[m.ID]++
	for _, to := range m.To {
		b.mails[[2]string{to, m.Subject}]++
	}
}

// accepted is how often the Message-ID was accepted.
func (b *mailbox) accepted(id string) int { return b.times[id] }

func (b *mailbox) stats() Stats {
	st := Stats{Accepted: b.total, Distinct: len(b.times), Last: b.last, IDs: make([]string, 0, len(b.times))}
	copies := 0
	for id := range b.times {
		st.IDs = append(st.IDs, id)
		copies += b.copies[id]
		if b.copies[id] > 1 {
			st.DeliveredTwice++
		}
	}
	st.Repeats = b.total - copies
	for _, n := range b.mails {
		if n > 1 {
			st.SameMailTwice++
		}
	}
	sort.Strings(st.IDs)
	return st
}

func (b *mailbox) close() error {
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}
