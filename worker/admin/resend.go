package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
)

// A ParkedSelection picks input that was set aside: by its ids, or all that matches.
type ParkedSelection struct {
	IDs    []int64 // empty: all that match
	Reason string  // for which it was set aside; "": any
	Type   string  // as the message named it; "": any
	Window         // in which it came last
	Limit  int     // the first so many by id; 0, and at most: MaxAct
}

// A ShownParked is what an operator saw before they sent it again, or dropped it.
type ShownParked struct {
	Entries []SetAside `json:"entries"` // by id, without bodies
	More    bool       `json:"more"`    // more of them match than the limit lets through
	Absent  []Left     `json:"absent"`  // ids that were given and are not there, or not by this selection
	How     string     `json:"how"`     // they were selected, for the audit
}

// Parked shows what is set aside and selected, for [Operator.Resend] and [Operator.Drop].
func (op *Operator) Parked(ctx context.Context, s ParkedSelection) (*ShownParked, error) {
	limit := s.Limit
	if limit <= 0 || limit > MaxAct {
		limit = MaxAct
	}
	var params []any
	where := ""
	and := func(condition string, param any) {
		params = append(params, param)
		where += fmt.Sprintf("\nAND "+condition, len(params))
	}
	if len(s.IDs) > 0 {
		and(`p.id = ANY ($%d::bigint[])`, s.IDs)
	}
	if s.Reason != "" {
		and(`p.reason = $%d`, s.Reason)
	}
	if s.Type != "" {
		and(`p.type = $%d`, s.Type)
	}
	s.Window.where("p.last_at", and)
	params = append(params, limit+1)
	shown := &ShownParked{Entries: []SetAside{}, Absent: []Left{}, How: s.String()}
	rows, err := op.Pool.Query(ctx, asideSQL+`''`+asideFrom+` WHERE true`+where+fmt.Sprintf("\nORDER BY p.id LIMIT $%d", len(params)), params...)
	if err == nil {
		shown.Entries, err = pgx.AppendRows(shown.Entries, rows, pgx.RowToStructByPos[SetAside])
	}
	if err != nil {
		return nil, fmt.Errorf("list what is parked: %w", explain(err))
	}
	if len(shown.Entries) > limit {
		shown.Entries, shown.More = shown.Entries[:limit], true
	}
	found := make(map[int64]bool, len(shown.Entries))
	for _, e := range shown.Entries {
		found[e.ID] = true
	}
	for _, id := range s.IDs {
		if !found[id] && !shown.More {
			found[id] = true
			shown.Absent = append(shown.Absent, Left{strconv.FormatInt(id, 10), "is not parked, or not by this selection"})
		}
	}
	return shown, nil
}

// String tells how s selects, for people.
func (s ParkedSelection) String() string {
	how := []string{"all"}
	if n := len(s.IDs); n > 0 {
		how[0] = fmt.Sprintf("%d by id", n)
	}
	if s.Reason != "" {
		how = append(how, "reason "+s.Reason)
	}
	if s.Type != "" {
		how = append(how, "type "+s.Type)
	}
	how = append(how, s.Window.words()...)
	if s.Limit > 0 {
		how = append(how, fmt.Sprintf("at most %d", s.Limit))
	}
	return strings.Join(how, ", ")
}

// Resend puts what was shown back into the queue as it came, and takes it out of what is
// parked: each input is in one of the two. What cannot be a message again is left alone
// with the reason. A worker that still cannot work it sets it aside again.
func (op *Operator) Resend(ctx context.Context, s *ShownParked, reason string) (*Result, error) {
	return op.do(ctx, s.audit("resend", reason), func(a *act) error {
		return s.inChunks(func(ids []int64) error { return op.resendChunk(ctx, a, ids) })
	})
}

func (op *Operator) resendChunk(ctx context.Context, a *act, ids []int64) error {
	rows, err := a.Query(ctx, lockParkedSQL, ids)
	if err != nil {
		return fmt.Errorf("read %d parked inputs: %w", len(ids), err)
	}
	parked, err := pgx.CollectRows(rows, pgx.RowToStructByPos[parkedInput])
	if err != nil {
		return fmt.Errorf("read %d parked inputs: %w", len(ids), err)
	}
	byID := make(map[int64]*parkedInput, len(parked))
	for i := range parked {
		byID[parked[i].ID] = &parked[i]
	}
	var ms []queue.Message
	var gone []int64
	for _, id := range ids {
		name := strconv.FormatInt(id, 10)
		in := byID[id]
		if in == nil {
			a.leave(name, "is not parked any more")
			continue
		}
		m, why := in.message()
		if why != "" {
			a.leave(name, why)
			continue
		}
		m.Priority = op.priority(m.Type)
		ms, gone = append(ms, m), append(gone, id)
		a.did(in.label())
	}
	if err := op.sender(a).Send(ctx, ms...); err != nil {
		return fmt.Errorf("send %d parked inputs again: %w", len(ms), err)
	}
	if _, err := a.Exec(ctx, unparkSQL, gone); err != nil {
		return fmt.Errorf("remove %d parked inputs: %w", len(gone), err)
	}
	return nil
}

// Drop removes what was shown for good: it will not be worked. The reason is required.
func (op *Operator) Drop(ctx context.Context, s *ShownParked, reason string) (*Result, error) {
	if reason == "" {
		return nil, errNoReason
	}
	return op.do(ctx, s.audit("drop", reason), func(a *act) error {
		return s.inChunks(func(ids []int64) error { return dropChunk(ctx, a, ids) })
	})
}

func dropChunk(ctx context.Context, a *act, ids []int64) error {
	rows, err := a.Query(ctx, unparkSQL+` RETURNING id, type, entity`, ids)
	if err != nil {
		return fmt.Errorf("drop %d parked inputs: %w", len(ids), err)
	}
	labels := make(map[int64]string, len(ids))
	var in parkedInput
	_, err = pgx.ForEachRow(rows, []any{&in.ID, &in.Type, &in.Entity}, func() error {
		labels[in.ID] = in.label()
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop %d parked inputs: %w", len(ids), err)
	}
	for _, id := range ids {
		if label, ok := labels[id]; ok {
			a.did(label)
		} else {
			a.leave(strconv.FormatInt(id, 10), "is not parked any more")
		}
	}
	return nil
}

// Locked, so that of two who send it again one does. Of a body that is larger than an item's
// arguments may be, and is no message, enough is read to tell that: there may be many of 1 MiB.
const (
	lockParkedSQL = `
/* parked: lock */
SELECT id, reason, type, entity, left(body, 65536 + 1), digest, epoch FROM oncemore.parked WHERE id = ANY ($1) ORDER BY id FOR UPDATE`
	unparkSQL = `/* parked: remove */ DELETE FROM oncemore.parked WHERE id = ANY ($1)`
)

type parkedInput struct {
	ID                         int64
	Reason, Type, Entity, Body string
	Digest                     []byte
	Epoch                      int64 // under which it was forced; 0: it was not
}

func (in *parkedInput) label() string { return fmt.Sprintf("%d %s %s", in.ID, in.Type, in.Entity) }

// message is the input as it came; why says that it cannot be had.
func (in *parkedInput) message() (m queue.Message, why string) {
	if len(in.Body) > queue.MaxArgs {
		return m, fmt.Sprintf("cannot be a message: it is larger than %d bytes; its producer must send it again, and this may be dropped", queue.MaxArgs)
	}
	// The digest is of the whole input. What is stored was capped, and made fit to be stored.
	whole := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s", in.Reason, in.Type, in.Entity, in.Body))
	if !bytes.Equal(whole[:], in.Digest) {
		return m, "was not kept as it came, since it was too long or not text: its producer must send it again, and this may be dropped"
	}
	m = queue.Message{Type: in.Type, Epoch: in.Epoch, Items: []queue.Item{{Entity: in.Entity, Args: []byte(in.Body)}}}
	if err := m.Check(); err != nil {
		return m, fmt.Sprintf("cannot be a message: %v; its producer must send it again, and this may be dropped", err)
	}
	return m, ""
}

func (s *ShownParked) audit(action, reason string) AuditEntry {
	e := AuditEntry{Action: action, Reason: reason, Detail: s.How}
	for i, in := range s.Entries {
		if i > 0 && in.Type != e.Type {
			e.Type = ""
			break
		}
		e.Type = in.Type
	}
	return e
}

// inChunks calls f with the ids in order: few at a time, since a body may be large.
func (s *ShownParked) inChunks(f func([]int64) error) error {
	ids := make([]int64, len(s.Entries))
	for i := range s.Entries {
		ids[i] = s.Entries[i].ID
	}
	slices.Sort(ids)
	for chunk := range slices.Chunk(slices.Compact(ids), 100) {
		if err := f(chunk); err != nil {
			return err
		}
	}
	return nil
}
