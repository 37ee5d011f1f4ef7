package ledger_test

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Who works a type says what it is; who only names it gets its number.
func TestWhoOnlyNamesATypeTakesNothingFromWhatItsWorkersDeclared(t *testing.T) {
	w := newWorld(t, ledger.Once)
	row := func(name string) string {
		t.Helper()
		return value[string](w, `SELECT concat_ws(' | ', name, effect, coalesce(source, 'no source'), seen_at > '-infinity') FROM oncemore.job_type WHERE name = $1`, name)
	}
	worked, named := &ledger.Type{Name: "letter", Effect: ledger.Once}, &ledger.Type{Name: "letter", Effect: ledger.InTransaction}
	w.ok(w.Register(t.Context(), named))
	w.want("named first", row("letter"), "letter | InTransaction | no source | f")
	w.ok(w.Declare(t.Context(), worked, `SELECT 1`))
	w.want("then declared", row("letter"), "letter | Once | SELECT 1 | t")
	w.want("its number", worked.ID, named.ID)
	w.ok(w.Register(t.Context(), named))
	w.want("named again", row("letter"), "letter | Once | SELECT 1 | t")
	w.want("its number again", named.ID, worked.ID)

	w.ok(w.Register(t.Context(), &ledger.Type{Name: "mail", Effect: ledger.InTransaction}, "letter"))
	w.want("named by an alias", row("letter"), "letter | Once | SELECT 1 | t")
	w.want("and by its newer name", row("mail"), "mail | InTransaction | no source | f")
	w.ok(w.Declare(t.Context(), &ledger.Type{Name: "letter", Effect: ledger.Once, Requests: true}, ""))
	w.want("declared without a source", row("letter"), "letter | Once, by request | no source | t")
}

// Effect keys are made of a type's first name. Tools that have no code at hand must see that it had
// one, also where no program of that time was ever started; they show no key then, rather than another.
func TestTheEarlierNamesOfATypeAreWrittenDownWhereItIsNew(t *testing.T) {
	w := newWorld(t, ledger.Once)
	mail := &ledger.Type{Name: "mail", Effect: ledger.Once}
	names := func() string {
		t.Helper()
		return value[string](w, `SELECT string_agg(concat_ws(' ', name, seen_at > '-infinity'), ', ' ORDER BY seen_at DESC) FROM oncemore.job_type WHERE id = $1`, mail.ID)
	}
	w.ok(w.Declare(t.Context(), mail, "", "post", "mail"))
	w.want("its names", names(), "mail t, post f")
	id := mail.ID
	w.ok(w.Declare(t.Context(), mail, "", "post", "mail"))
	w.want("declared again", names(), "mail t, post f")
	w.want("its number", mail.ID, id)
}
