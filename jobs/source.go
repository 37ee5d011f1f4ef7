package jobs

import (
	"context"
	"iter"
)

// A Source names entities: all that a job type should have done, or all that one call of
// a fan-out asks for. The zero Source names nothing and counts as absent.
type Source struct {
	jobType string
	query   string
	params  []any
	each    func(ctx context.Context, after string) iter.Seq2[Args, error]
}

// SQL is a source on the ledger's own database: a SELECT whose column entity (text) is
// what A's Entity returns, and whose other columns are A's JSON fields by name. What is
// missing is then found inside the server, without a row travelling. The columns are
// checked when a worker starts.
func SQL[A Args](query string, params ...any) Source {
	return Source{jobType: typeName[A](), query: query, params: params}
}

// Seq is a source in Go: each yields args in the order of their entities (compared as
// bytes), beginning behind the entity after ("" is the beginning). An error ends it; the
// next try begins behind the last entity that was planned.
func Seq[A Args](each func(ctx context.Context, after string) iter.Seq2[A, error]) Source {
	return Source{jobType: typeName[A](), each: func(ctx context.Context, after string) iter.Seq2[Args, error] {
		return func(yield func(Args, error) bool) {
			for a, err := range each(ctx, after) {
				if !yield(a, err) {
					return
				}
			}
		}
	}}
}

// IsZero tells whether there is no source.
func (s Source) IsZero() bool { return s.query == "" && s.each == nil }

// JobType is the type of the entities that s names.
func (s Source) JobType() string { return s.jobType }

// Query returns the statement and its parameters; it is empty for a source in Go.
func (s Source) Query() (string, []any) { return s.query, s.params }

// InGo tells whether s is a source in Go.
func (s Source) InGo() bool { return s.each != nil }

// Each yields the args of a source in Go; nil for one in SQL.
func (s Source) Each(ctx context.Context, after string) iter.Seq2[Args, error] {
	if s.each == nil {
		return nil
	}
	return s.each(ctx, after)
}
