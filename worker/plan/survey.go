package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A Subject is the job type that is surveyed. Without the application's jobs Decode is
// nil: then arguments are not compared, and a source in Go is not there.
type Subject struct {
	ledger.Type
	Source jobs.Source                                         // zero: there is none, or it is not known here
	Decode func(entity string, raw []byte) (jobs.Input, error) // of the job; nil: not known here
}

// An Item is one entity that a survey came upon, and what Decide says of it.
type Item struct {
	Entity string        `json:"entity"`
	Args   string        `json:"args"` // as JSON
	Reason ledger.Reason `json:"reason"`
}

// A Tally is how many entities a survey saw.
type Tally struct {
	Named  int64                   `json:"named"`  // by the source, as often as it names them
	Seen   map[ledger.Reason]int64 `json:"seen"`   // by reason; done is what the source named and nothing else was seen of
	Picked map[ledger.Reason]int64 `json:"picked"` // of those, what the selection picks
	Items  int64                   `json:"items"`  // picked in all
	Capped bool                    `json:"capped"` // there may be more: the survey ended at a bound
	Asked  bool                    `json:"asked"`  // the source was
}

// A Survey goes over a subject in READ COMMITTED or read-only transactions. Call FromSource
// and then FromOpen in one, or FromChunk for each part of a source in Go. What it picks it
// hands to Each, some thousand at a time. It writes nothing.
type Survey struct {
	Subject
	Selection
	Epoch int64 // of a forced selection; ignored for others
	Most  int64 // items are picked; 0: no bound but the selection's
	Each  func([]Item) error
	Tally

	met map[string]bool // open entities that the source named
}

// step is how many rows travel at once.
const step = 5000

// ErrNoSource says that there is nothing to ask for what is missing.
var ErrNoSource = errors.New("its source is not known here: workers register the sources that are SQL without parameters, " +
	"and other sources need a program that has the jobs (cli.Options.Set)")

// FromSource goes over what a source in SQL names, if the selection asks for any of that.
// What is done does not leave the server, so that a million done entities take a second.
func (s *Survey) FromSource(ctx context.Context, tx pgx.Tx) error {
	query, params := s.Subject.Source.Query()
	if !s.sourced() || s.full() {
		return nil
	}
	if query == "" {
		return fmt.Errorf("%s: %w", s.Name, ErrNoSource)
	}
	columns, err := Describe(ctx, tx, query)
	if err != nil {
		return fmt.Errorf("the source of %s cannot be used: %w", s.Name, err)
	}
	s.Asked = true
	params = slices.Clone(params)
	arg := func(v any) string {
		params = append(params, v)
		return fmt.Sprintf("$%d", len(params))
	}
	where := ""
	if len(s.Entities) > 0 {
		where += ` AND q.entity::text = ANY (` + arg(s.Entities) + `::text[])`
	}
	if s.Prefix != "" {
		where += ` AND starts_with(q.entity::text, ` + arg(s.Prefix) + `::text)`
	}
	if where != "" {
		where = ` WHERE true` + where
	}
	source := `SELECT coalesce(q.entity::text, '') COLLATE "C" AS entity` + columns.Others() + ` FROM (` + query + `
    ) q` + where
	var first, last string
	err = tx.QueryRow(ctx, `SELECT count(*), coalesce(min(s.entity), ''), coalesce(max(s.entity), '') FROM (`+source+`) s`, params...).Scan(&s.Named, &first, &last)
	if err != nil {
		return fmt.Errorf("count what the source of %s names: %w", s.Name, err)
	}
	within, err := s.dense(ctx, tx, query, first, last)
	if err != nil {
		return err
	}
	sieve := s.sieve(columns, within, arg)
	return s.walk(ctx, tx, `
SELECT s.entity, `+columns.JSON()+` FROM (`+source+` `+Order(query)+`) s`+sieve, params, within != nil)
}

// A stretch of the ledger's key.
type stretch struct{ first, last string }

// dense tells, with the stretch, whether the facts between the first and the last named
// entity are few enough that reading them all in order, beside the source, takes less time
// than looking for each: a descent of the index costs some times what the next row does.
// An estimate that is wrong costs time and nothing else. A source with an order of its own
// keeps it, and its entities are looked for one by one.
func (s *Survey) dense(ctx context.Context, tx pgx.Tx, query, first, last string) (*stretch, error) {
	const rowsPerDescent = 4
	if s.Force || s.Named < 1000 || Order(query) == inOwnOrder {
		return nil, nil
	}
	var raw []byte
	err := tx.QueryRow(ctx, `EXPLAIN (FORMAT JSON) SELECT FROM oncemore.ledger l WHERE l.job_type = $1 AND l.entity >= $2 AND l.entity <= $3`,
		pgx.QueryExecModeSimpleProtocol, s.ID, first, last).Scan(&raw)
	var plans []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err == nil {
		err = json.Unmarshal(raw, &plans)
	}
	if err != nil {
		return nil, fmt.Errorf("estimate how many facts of %s there are: %w", s.Name, err)
	}
	if len(plans) == 1 && plans[0].Plan.Rows < rowsPerDescent*float64(s.Named) {
		return &stretch{first, last}, nil
	}
	return nil, nil
}

// sieve is the part of the query that leaves out what is done: what has a fact that
// satisfies it. It may let through too much, since Decide is asked about the rest.
func (s *Survey) sieve(columns Columns, within *stretch, arg func(any) string) string {
	if s.Force && s.Since.IsZero() && s.Until.IsZero() {
		return ``
	}
	fact := `(SELECT l.entity FROM oncemore.ledger l WHERE l.job_type = ` + arg(s.ID) + `::int AND l.entity = s.entity`
	if s.Force {
		if !s.Since.IsZero() {
			fact += ` AND l.completed_at >= ` + arg(s.Since)
		}
		if !s.Until.IsZero() {
			fact += ` AND l.completed_at < ` + arg(s.Until)
		}
		return ` CROSS JOIN LATERAL ` + fact + ` OFFSET 0) l`
	}
	fact += ` AND coalesce(l.version, 0) >= ` + arg(s.Version) + `::int`
	if columns.Has("source_version") {
		fact += ` AND coalesce(l.source_version, 0) >= coalesce(s.source_version, 0)`
	}
	if within != nil {
		return ` WHERE NOT EXISTS ` + fact + ` AND l.entity >= ` + arg(within.first) + ` AND l.entity <= ` + arg(within.last) + `)`
	}
	return ` LEFT JOIN LATERAL ` + fact + ` OFFSET 0) l ON true WHERE l.entity IS NULL`
}

// walk reads the rows of a query bit by bit, and decides on them. side by side is how the
// source and a stretch of the facts are read.
func (s *Survey) walk(ctx context.Context, tx pgx.Tx, query string, params []any, sideBySide bool) error {
	const settings = `SELECT set_config('jit', 'off', true), set_config('cursor_tuple_fraction', '1', true), set_config('work_mem', '128MB', true),
set_config('enable_nestloop', $1, true)`
	_, err := tx.Exec(ctx, settings, strconv.FormatBool(!sideBySide))
	if err == nil {
		_, err = tx.Exec(ctx, `DECLARE oncemore_survey NO SCROLL CURSOR FOR `+query, params...)
	}
	if err == nil {
		_, err = tx.Exec(ctx, settings, "true") // for the statements that follow
	}
	if err != nil {
		return fmt.Errorf("survey the source of %s: %w", s.Name, err)
	}
	travelled, whole := int64(0), false
	for !whole && !s.full() {
		rows, err := tx.Query(ctx, fmt.Sprintf(`FETCH %d FROM oncemore_survey`, step))
		if err != nil {
			return fmt.Errorf("survey the source of %s: %w", s.Name, err)
		}
		page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (it Item, err error) {
			return it, row.Scan(&it.Entity, &it.Args)
		})
		if err != nil {
			return fmt.Errorf("survey the source of %s: %w", s.Name, err)
		}
		travelled += int64(len(page))
		if err := s.decide(ctx, tx, page); err != nil {
			return err
		}
		whole = len(page) < step
	}
	s.Capped = s.Capped || !whole
	if !s.Capped && !s.Force {
		s.saw(ledger.Done, s.Named-travelled)
	}
	_, err = tx.Exec(ctx, `CLOSE oncemore_survey`)
	return err
}

func (s *Survey) saw(r ledger.Reason, n int64) {
	if s.Seen == nil {
		s.Seen, s.Picked = map[ledger.Reason]int64{}, map[ledger.Reason]int64{}
	}
	if n > 0 {
		s.Seen[r] += n
	}
}

// FromChunk goes over a part of what a source in Go names, and over what is open of that
// part of the key: the source names its entities in order.
func (s *Survey) FromChunk(ctx context.Context, tx pgx.Tx, c *Chunk) error {
	s.Asked = s.sourced()
	s.Named += int64(c.read)
	for page := range slices.Chunk(c.items, step) {
		if err := s.decide(ctx, tx, page); err != nil {
			return err
		}
	}
	to := c.After
	if !c.More {
		to = ""
	}
	return s.open(ctx, tx, c.from, to)
}

// A Chunk is a part of what a source in Go names, read before the transaction that decides
// on it begins: the source may itself need a connection.
type Chunk struct {
	After string // the last entity that was read
	More  bool   // the source may have more behind it
	from  string // it begins behind this
	items []Item
	read  int
}

// Read reads up to most of what a source in Go names behind an entity. A selection that
// does not ask for anything of that gets an empty chunk.
func (s *Survey) Read(ctx context.Context, after string, most int) (*Chunk, error) {
	c := &Chunk{After: after, from: after}
	if !s.sourced() {
		return c, nil
	}
	for a, err := range s.Subject.Source.Each(ctx, after) {
		if err != nil {
			return nil, fmt.Errorf("the source of %s: %w", s.Name, err)
		}
		it, err := jobs.NewItem(a)
		if err != nil {
			return nil, fmt.Errorf("the source of %s: %w", s.Name, err)
		}
		c.After = it.Entity
		c.read++
		if strings.HasPrefix(it.Entity, s.Prefix) && (len(s.Entities) == 0 || slices.Contains(s.Entities, it.Entity)) {
			c.items = append(c.items, Item{Entity: it.Entity, Args: string(it.Args)})
		}
		if c.read == most {
			c.More = true
			break
		}
	}
	return c, nil
}

// decide asks the ledger about named entities, and picks.
func (s *Survey) decide(ctx context.Context, tx pgx.Tx, page []Item) error {
	wants := make([]ledger.Want, len(page))
	for i := range page {
		wants[i] = s.want(&page[i])
	}
	standings, err := ledger.LookIn(ctx, tx, &s.Type, wants)
	if err != nil {
		return err
	}
	picked := page[:0]
	for i, st := range standings {
		it := page[i]
		if s.Force && !s.inWindow(st.Fact) {
			continue
		}
		if it.Reason = st.Reason; st.Open != nil && st.Reason != ledger.Done { // else what is open asks for more than the source
			if s.met == nil {
				s.met = map[string]bool{}
			}
			s.met[it.Entity] = true
		}
		if st.Reason == ledger.InDoubt {
			it.Args = st.Open.Args // the doubt is about these, whatever the source says by now
		}
		picked = s.pick(picked, it)
	}
	return s.hand(picked)
}

// inWindow tells whether a fact lets a forced selection's window through: that is about
// what was completed in it.
func (s *Survey) inWindow(f *ledger.Fact) bool {
	if s.Since.IsZero() && s.Until.IsZero() {
		return true
	}
	return f != nil && !f.CompletedAt.Before(s.Since) && (s.Until.IsZero() || f.CompletedAt.Before(s.Until))
}

// want is what an item that the source names asks for.
func (s *Survey) want(it *Item) ledger.Want {
	w := ledger.Want{Entity: it.Entity}
	if s.Force {
		w.Epoch = s.Epoch
	}
	if s.Decode != nil {
		// What does not decode is picked all the same: the worker parks it, and lists it.
		if in, err := s.Decode(it.Entity, []byte(it.Args)); err == nil {
			w.Fingerprint, w.SourceVersion = in.Fingerprint, in.SourceVersion
		}
		return w
	}
	var sourced struct {
		Version int64 `json:"source_version"`
	}
	if json.Unmarshal([]byte(it.Args), &sourced) == nil {
		w.SourceVersion = sourced.Version
	}
	return w
}

func (s *Survey) pick(picked []Item, it Item) []Item {
	s.saw(it.Reason, 1)
	if !s.Picks(it.Reason) {
		return picked
	}
	if s.full() {
		s.Capped = true
		return picked
	}
	s.Picked[it.Reason]++
	s.Items++
	return append(picked, it)
}

// full tells whether nothing more may be picked.
func (s *Survey) full() bool {
	return s.Limit > 0 && s.Items >= s.Limit || s.Most > 0 && s.Items >= s.Most
}

func (s *Survey) hand(items []Item) error {
	if len(items) == 0 {
		return nil
	}
	return s.Each(items)
}

// FromOpen goes over what is open of the subject and was not named by its source in SQL
// before.
func (s *Survey) FromOpen(ctx context.Context, tx pgx.Tx) error { return s.open(ctx, tx, "", "") }

// open goes over what is open behind an entity, up to another one ("": to the end).
func (s *Survey) open(ctx context.Context, tx pgx.Tx, after, to string) error {
	if s.Force {
		return nil // the source names what is to be forced
	}
	if s.full() {
		s.Capped = true
		return nil
	}
	query, params := s.openQuery(after, to)
	rows, err := tx.Query(ctx, query, params...)
	if err != nil {
		return fmt.Errorf("survey what is open of %s: %w", s.Name, err)
	}
	type open struct {
		ledger.Want
		args string
	}
	opens, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o open, err error) {
		return o, row.Scan(&o.Entity, &o.args, &o.Fingerprint, &o.SourceVersion, &o.Epoch)
	})
	if err != nil {
		return fmt.Errorf("survey what is open of %s: %w", s.Name, err)
	}
	for page := range slices.Chunk(opens, step) {
		var wants []ledger.Want
		var items []Item
		for _, o := range page {
			if !s.met[o.Entity] {
				wants, items = append(wants, o.Want), append(items, Item{Entity: o.Entity, Args: o.args})
			}
		}
		standings, err := ledger.LookIn(ctx, tx, &s.Type, wants)
		if err != nil {
			return err
		}
		picked := make([]Item, 0, len(items))
		for i, st := range standings {
			if st.Reason == ledger.Done {
				continue // outranked by its fact: it is named as done, or not at all
			}
			items[i].Reason = st.Reason
			picked = s.pick(picked, items[i])
		}
		if err := s.hand(picked); err != nil {
			return err
		}
		if s.full() {
			return nil
		}
	}
	return nil
}

// openQuery lists the claims of the subject, with the attempt that brought each into its
// state.
func (s *Survey) openQuery(after, to string) (string, []any) {
	params := []any{s.ID}
	query := `
SELECT c.entity, c.args, c.fingerprint, c.source_version, c.epoch
FROM oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner
LEFT JOIN LATERAL (SELECT a.at, a.error_class FROM oncemore.attempt a
                   WHERE a.job_type = c.job_type AND a.entity = c.entity AND c.owner IS NULL AND a.outcome = c.trouble ORDER BY a.at DESC LIMIT 1) a ON true
WHERE c.job_type = $1`
	and := func(condition string, v any) {
		params = append(params, v)
		query += fmt.Sprintf(` AND `+condition, len(params))
	}
	if after != "" {
		and(`c.entity > $%d`, after)
	}
	if to != "" {
		and(`c.entity <= $%d`, to)
	}
	if len(s.Entities) > 0 {
		and(`c.entity = ANY ($%d::text[])`, s.Entities)
	}
	if s.Prefix != "" {
		and(`starts_with(c.entity, $%d::text)`, s.Prefix)
	}
	if s.Class != "" {
		and(`a.error_class = $%d`, s.Class)
	}
	if !s.Since.IsZero() {
		and(`coalesce(a.at, w.dead_at, c.claimed_at) >= $%d`, s.Since)
	}
	if !s.Until.IsZero() {
		and(`coalesce(a.at, w.dead_at, c.claimed_at) < $%d`, s.Until)
	}
	return query + ` ORDER BY c.entity`, params
}
