package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A proof is counted from the tables when the editor has come to rest.
type proof struct {
	Documents int64
	Edits     int64
	Tags      int64
	Absent    int64 // tags that another computation finds in the texts, and the index has not
	Surplus   int64 // tags in the index that it does not find, or that are there twice
	Stale     int64 // documents whose fact is of an earlier revision
	Missing   int64 // documents without a fact

	Wiped    int64
	Epoch    int64 // under which the index was rebuilt
	Older    int64 // documents whose fact is of before the rebuild
	Archived int64 // documents of whose completion before the rebuild the ledger still tells

	Again               int64 // completions of the document that changed while it was being indexed
	Failed, FailedAgain string
	Open                int64 // claims, in the end
}

// By the server's own means, from the texts as they are: no part of the job is used.
const recomputedSQL = `
SELECT DISTINCT d.id, m[1] FROM tags.document d CROSS JOIN LATERAL regexp_matches(convert_from(d.body, 'UTF8'), '#([a-z]+)', 'g') AS m`

const (
	absentSQL  = `SELECT count(*) FROM (` + recomputedSQL + ` EXCEPT ALL SELECT document_id, tag FROM tags.tag) t`
	surplusSQL = `SELECT count(*) FROM (SELECT document_id, tag FROM tags.tag EXCEPT ALL (` + recomputedSQL + `)) t`

	factsSQL = ` FROM tags.document d LEFT JOIN oncemore.ledger l
ON l.job_type = (SELECT id FROM oncemore.job_type WHERE name = 'index_document') AND l.entity = d.id::text`

	archivedSQL = `
SELECT count(DISTINCT h.entity) FROM oncemore.ledger_history h
WHERE h.job_type = (SELECT id FROM oncemore.job_type WHERE name = 'index_document') AND coalesce(h.epoch, 0) < $1`

	quietSQL = `
SELECT NOT EXISTS (SELECT FROM oncemore.message WHERE type = 'index_document')
AND NOT EXISTS (SELECT FROM oncemore.claim WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = 'index_document') AND trouble IS DISTINCT FROM 'failed')`
)

// count brings the editor to rest, and counts.
func (p *play) count(ctx context.Context) error {
	if err := p.editor.Close(); err != nil {
		return err
	}
	pr := &p.proof
	pr.Edits = p.editor.edits.Load()
	p.Say("The editor rests after %d edits.", pr.Edits)
	if err := p.Await(ctx, "all of them are indexed", quietSQL); err != nil {
		return err
	}
	return p.Count(ctx, []stage.Number{
		stage.Into(&pr.Documents, `SELECT count(*) FROM tags.document`),
		stage.Into(&pr.Tags, `SELECT count(*) FROM tags.tag`),
		stage.Into(&pr.Absent, absentSQL),
		stage.Into(&pr.Surplus, surplusSQL),
		stage.Into(&pr.Stale, `SELECT count(*)`+factsSQL+` WHERE l.source_version < d.revision`),
		stage.Into(&pr.Missing, `SELECT count(*)`+factsSQL+` WHERE l.entity IS NULL`),
		stage.Into(&pr.Older, `SELECT count(*)`+factsSQL+` WHERE coalesce(l.epoch, 0) < $1`, pr.Epoch),
		stage.Into(&pr.Archived, archivedSQL, pr.Epoch),
		stage.Into(&pr.Open, `SELECT count(*) FROM oncemore.claim WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = 'index_document')`),
	}, nil)
}

// Check says which lines are wrong.
func (pr *proof) Check() error {
	var c stage.Check
	c.Is(pr.Documents > 0 && pr.Tags > pr.Documents, "%d documents have %d tags", pr.Documents, pr.Tags)
	c.Is(pr.Edits > 0, "nothing was edited")
	c.Is(pr.Absent == 0, "%d tags are not in the index", pr.Absent)
	c.Is(pr.Surplus == 0, "%d tags should not be in the index", pr.Surplus)
	c.Is(pr.Stale == 0, "%d documents were not indexed after their last edit", pr.Stale)
	c.Is(pr.Missing == 0, "%d documents are recorded nowhere", pr.Missing)
	c.Is(pr.Wiped > 0 && pr.Epoch > 0, "the index was not wiped and rebuilt")
	c.Is(pr.Older == 0, "%d documents were not indexed again after the wipe", pr.Older)
	c.Is(pr.Archived == pr.Documents-1, "of %d documents, all but the bad one were indexed before the wipe; the ledger tells it of %d", pr.Documents, pr.Archived)
	c.Is(pr.Again == 2, "the document that changed while it was being indexed was indexed %d times, not twice", pr.Again)
	for _, failed := range []string{pr.Failed, pr.FailedAgain} {
		c.Is(strings.Contains(failed, "not UTF-8"), "the bad document was listed with %q", failed)
	}
	c.Is(pr.Open == 0, "%d documents are still open", pr.Open)
	return c.Err()
}

func (pr *proof) Write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer func() {
		_ = t.Flush()
		fmt.Fprintf(w, "\nproof: %d tags in the index after %d edits and a wipe; %d absent, %d surplus, by a computation of the server's own\n", pr.Tags, pr.Edits, pr.Absent, pr.Surplus)
	}()
	fmt.Fprintf(t, "\n  documents\t%d\tedited %d times meanwhile\n  tags in the index\t%d\n", pr.Documents, pr.Edits, pr.Tags)
	fmt.Fprintf(t, "  absent\t%d\tby a computation of the server's own\n  surplus or twice\t%d\n", pr.Absent, pr.Surplus)
	fmt.Fprintf(t, "  indexed at an earlier revision\t%d\n  missing\t%d\n", pr.Stale, pr.Missing)
	fmt.Fprintf(t, "  rows wiped\t%d\n  rebuilt under epoch\t%d\n", pr.Wiped, pr.Epoch)
	fmt.Fprintf(t, "  not rebuilt\t%d\n  facts of before, archived\t%d\n", pr.Older, pr.Archived)
	fmt.Fprintf(t, "  changed while indexed, so indexed\t%d times\n", pr.Again)
	fmt.Fprintf(t, "  listed until it was mended\t1\t%s\n  open\t%d\n", pr.Failed, pr.Open)
}
