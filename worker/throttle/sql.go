package throttle

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// SQL asks the user's own question: a query whose first row's first column is a number, or
// a truth, and more than 0 (or true) means wait. A second column, if there is one, is the
// reason in words. It runs in a read-only transaction. No row, NULL and what is no number
// are unknown.
//
//	throttle.SQL("outbox", `SELECT count(*) - 10000, 'outbox holds ' || count(*) FROM outbox`)
func SQL(name, query string) Signal {
	s := Signal{Name: name, Read: func(ctx context.Context, tx pgx.Tx) (Verdict, string, error) {
		// As text, whatever the type of the column: the query is not ours.
		rows, err := tx.Query(ctx, query, pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			return "", "", err
		}
		defer rows.Close()
		if !rows.Next() {
			if err := rows.Err(); err != nil {
				return "", "", err
			}
			return Unknown, "the query returned no row", nil
		}
		var value, reason []byte
		if columns := rows.RawValues(); len(columns) > 0 {
			value = columns[0]
			if len(columns) > 1 {
				reason = columns[1]
			}
		}
		if value == nil {
			return Unknown, "the query returned NULL", nil
		}
		n, text := 0.0, string(value)
		switch text {
		case "t":
			n, text = 1, "true"
		case "f":
			text = "false"
		default:
			if n, err = strconv.ParseFloat(text, 64); err != nil || n != n {
				return Unknown, fmt.Sprintf("the query returned %.40q, which is no number", text), nil
			}
		}
		why := string(reason)
		if reason == nil {
			why = fmt.Sprintf("it is %s, and more than 0 means wait", text)
		}
		verdict := Go
		if n > 0 {
			verdict = Wait
		}
		rows.Close()
		return verdict, why, rows.Err()
	}}
	if query == "" {
		s.wrong = errors.New("it has no query")
	}
	return s
}
