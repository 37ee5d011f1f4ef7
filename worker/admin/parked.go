package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// A SetAside is input that could not be worked. The same content is one
// row, however often it came.
type SetAside struct {
	ID      int64     `json:"id"`
	Reason  string    `json:"reason"` // undecodable | unknown_type | conflict | not_ready, or why it waited too long
	Type    string    `json:"type"`   // as the message named it
	Entity  string    `json:"entity"`
	FirstAt time.Time `json:"first_at"`
	LastAt  time.Time `json:"last_at"`
	Times   int       `json:"times"`
	Error   string    `json:"error"`
	Bytes   int       `json:"bytes"`          // of the body, as it was kept
	Body    string    `json:"body,omitempty"` // of [FindParked] alone
}

// ParkedFilter narrows a list of parked input down.
type ParkedFilter struct {
	Type   string // as the message named it, also one that nobody has registered; "": all
	Reason string // "": all
}

// ListParked lists what is parked, the newest first, without bodies.
func ListParked(ctx context.Context, tx pgx.Tx, f ParkedFilter, p Page) (*List[SetAside], error) {
	before := int64(1<<63 - 1)
	if p.After != "" {
		var err error
		if before, err = strconv.ParseInt(p.After, 10, 64); err != nil {
			return nil, fmt.Errorf("%q: %w", p.After, ErrPage)
		}
	}
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, err
	}
	var n int64
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM oncemore.parked p`+parkedWhere+` LIMIT $3) p`, f.Type, f.Reason, CountMost+1).Scan(&n); err != nil {
		return nil, fmt.Errorf("count what is parked: %w", err)
	}
	list := &List[SetAside]{Now: now, Of: Capped(n, CountMost), Rows: []SetAside{}}
	if p.Limit <= 0 {
		return list, nil
	}
	rows, err := rowsOf[SetAside](ctx, tx, asideSQL+`''`+asideFrom+parkedWhere+` AND p.id < $3 ORDER BY p.id DESC LIMIT $4`, f.Type, f.Reason, before, p.Limit+1)
	if err != nil {
		return nil, fmt.Errorf("list what is parked: %w", err)
	}
	if len(rows) > p.Limit {
		rows = rows[:p.Limit]
		list.Next = strconv.FormatInt(rows[p.Limit-1].ID, 10)
	}
	list.Rows = rows
	return list, nil
}

const (
	asideSQL    = `SELECT p.id, p.reason, p.type, p.entity, p.first_at, p.last_at, p.times, p.error, octet_length(p.body), `
	asideFrom   = ` FROM oncemore.parked p`
	parkedWhere = ` WHERE ($1 = '' OR p.type = $1) AND ($2 = '' OR p.reason = $2)`
)

// ErrNotParked says that there is no such input, or none any more.
var ErrNotParked = errors.New("nothing is parked under this id")

// FindParked returns one parked input with its body.
func FindParked(ctx context.Context, tx pgx.Tx, id int64) (*SetAside, error) {
	rows, err := rowsOf[SetAside](ctx, tx, asideSQL+`p.body`+asideFrom+` WHERE p.id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("read parked input %d: %w", id, err)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("%d: %w", id, ErrNotParked)
	}
	return &rows[0], nil
}
