package ledger_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// The server's time of all of it, and the durations of the classes.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

const (
	horizon = 24 * time.Hour
	timeout = time.Minute
	settle  = 5 * time.Minute
)

// A situation is one cell of the table, with its attributes in words beside the rows that
// Decide sees. The rows are made from the words; the specification reads only the words.
type situation struct {
	effect  string // tx, repeatable, keyed, verifiable, once
	checked bool   // Keyed: there is a done-check
	want    string // plain, forced, newer source, other args, and two of them
	fact    string // none, satisfying, older epoch, older version, older source, other args
	claim   string // none, held, …
	stands  string // what the claim stands for: plain, forced, newer source, other args
	proof   string // evidence of an earlier attempt: none, fresh, old (past the horizon)

	kind  ledger.Type
	w     ledger.Want
	f     *ledger.Fact
	o     *ledger.Open
	again bool // the want is of a higher epoch or source than the claim
}

func (s *situation) String() string {
	return fmt.Sprintf("%s(checked=%t) want %s, fact %s, claim %s for %s, evidence %s", s.effect, s.checked, s.want, s.fact, s.claim, s.stands, s.proof)
}

var effects = map[string]ledger.Effect{"tx": ledger.InTransaction, "repeatable": ledger.Repeatable, "keyed": ledger.Keyed(horizon),
	"verifiable": ledger.Verifiable(settle), "once": ledger.Once}

// Everything is wanted by one run.
const thisRun = 8

// wanted makes a want; claims stand for wants too.
func wanted(words string) ledger.Want {
	w := ledger.Want{Entity: "e", Fingerprint: someArgs, Epoch: 3, SourceVersion: 10, Run: thisRun}
	switch words {
	case "forced":
		w.Epoch = 7
	case "newer source":
		w.SourceVersion = 20
	case "other args":
		w.Fingerprint = otherArgs
	case "forced, other args":
		w.Epoch, w.Fingerprint = 7, otherArgs
	case "newer source, other args":
		w.SourceVersion, w.Fingerprint = 20, otherArgs
	case "unknown args":
		w.Fingerprint = 0
	case "args by an older rule":
		w.Fingerprint = 2<<56 | 99
	}
	return w
}

var (
	wants  = []string{"plain", "forced", "newer source", "other args", "forced, other args", "newer source, other args", "unknown args", "args by an older rule"}
	facts  = []string{"none", "satisfying", "older epoch", "older version", "older source", "other args"}
	claims = []string{"none", "held", "abandoned just now", "abandoned long ago", "retrying due", "retrying waiting", "failed", "failed just now", "in_doubt", "returned",
		"called again", "called again by another"}
	stands = []string{"plain", "forced", "newer source", "other args"}
	proofs = []string{"none", "fresh", "old"}
)

func (s *situation) build() {
	s.kind = ledger.Type{ID: 1, Name: "t", Effect: effects[s.effect], Timeout: timeout, Checked: s.checked, Version: 2}
	s.w = wanted(s.want)
	if s.fact != "none" {
		f := ledger.Fact{Entity: "e", Fingerprint: s.w.Fingerprint, Epoch: s.w.Epoch, Version: 2, SourceVersion: s.w.SourceVersion}
		switch s.fact {
		case "older epoch":
			f.Epoch--
		case "older version":
			f.Version--
		case "older source":
			f.SourceVersion--
		case "other args":
			f.Fingerprint = 1<<56 | 44
		}
		s.f = &f
	}
	if s.claim == "none" {
		return
	}
	st := wanted(s.stands)
	o := ledger.Open{Entity: "e", Fence: 5, Fingerprint: st.Fingerprint, Epoch: st.Epoch, SourceVersion: st.SourceVersion, Attempts: 1, Run: thisRun}
	switch s.proof {
	case "fresh":
		o.FirstClaimedAt = noon.Add(-time.Hour)
	case "old":
		o.FirstClaimedAt = noon.Add(-horizon)
	}
	switch s.claim {
	case "held":
		o.Owner = 9
	case "abandoned just now":
		o.Owner, o.OwnerDeadAt = 9, noon.Add(-time.Second)
	case "abandoned long ago":
		o.Owner, o.OwnerDeadAt = 9, noon.Add(-settle)
	case "retrying due":
		o.Trouble, o.NotBefore = ledger.Retrying, noon
	case "retrying waiting":
		o.Trouble, o.NotBefore = ledger.Retrying, noon.Add(time.Second)
	case "failed":
		o.Trouble = ledger.FailedFor
	case "failed just now":
		o.Trouble, o.ClaimedAt = ledger.FailedFor, noon.Add(-time.Second)
	case "in_doubt":
		o.Trouble = ledger.Doubtful
	case "returned":
		o.Trouble, o.Attempts = ledger.Retrying, 0
	case "called again":
		o.Trouble, o.Attempts = ledger.FailedFor, 0
	case "called again by another":
		o.Trouble, o.Attempts, o.Run = ledger.FailedFor, 0, thisRun+1
	}
	s.o = &o
	s.again = s.w.Epoch > o.Epoch || s.w.SourceVersion > o.SourceVersion
}

// each calls f with every situation.
func each(f func(*situation)) (n int) {
	for effect := range effects {
		for _, checked := range []bool{false, true} {
			for _, want := range wants {
				for _, fact := range facts {
					for _, claim := range claims {
						for i, stand := range stands {
							for j, proof := range proofs {
								if claim == "none" && i+j > 0 {
									continue
								}
								s := &situation{effect: effect, checked: checked, want: want, fact: fact, claim: claim, stands: stand, proof: proof}
								s.build()
								f(s)
								n++
							}
						}
					}
				}
			}
		}
	}
	return n
}

func known(words string) bool {
	return words != "unknown args" && words != "args by an older rule"
}

// repeats tells whether the effect class has nothing against another attempt: the fourth
// invariant, in the words of the design's table.
func (s *situation) mayRepeat() bool {
	if s.claim == "none" || s.proof == "none" {
		return true // no attempt can have had an effect
	}
	switch s.effect {
	case "once":
		return false
	case "keyed":
		return s.proof == "fresh" || s.checked
	case "verifiable":
		return !s.justNow()
	}
	return true
}

// justNow: the world may not show yet what the last attempt did.
func (s *situation) justNow() bool {
	return s.claim == "abandoned just now" || s.claim == "failed just now"
}

// failed: it has, and no run has called it again.
func (s *situation) failed() bool {
	return s.claim == "failed" || s.claim == "failed just now"
}

// untried: the claim counts no attempt.
func (s *situation) untried() bool {
	return s.claim == "returned" || s.claim == "called again" || s.claim == "called again by another"
}

// blocked is the set of sentences that keep an item from running, whatever is wanted.
func (s *situation) blocked() (why []string) {
	say := func(cond bool, what string) {
		if cond {
			why = append(why, what)
		}
	}
	say(s.satisfied(), "it is done")
	say(s.fact == "other args" && known(s.want), "the fact is of other arguments")
	say(s.claim == "held", "a living worker has it")
	say(s.claim == "in_doubt", "it is in doubt")
	say(s.claim == "retrying waiting", "its time has not come")
	say(s.failed() && !s.again, "it failed, and nothing newer is wanted")
	say(s.argsDiffer() && !s.again, "the claim is of other arguments, and nothing newer is wanted")
	say(!s.mayRepeat(), "its effect may not be repeated")
	return why
}

// satisfied: the fact is what is wanted. Code versions count only where work may repeat.
func (s *situation) satisfied() bool {
	repeatable := s.effect == "tx" || s.effect == "repeatable"
	return s.fact == "satisfying" || s.fact == "older version" && !repeatable || s.fact == "other args" && !known(s.want)
}

// argsDiffer: the claim stands for other arguments than are wanted.
func (s *situation) argsDiffer() bool {
	if s.claim == "none" || !known(s.want) {
		return false
	}
	return (s.stands == "other args") != (s.w.Fingerprint == otherArgs)
}

func TestDecideRunsExactlyWhatNothingSpeaksAgainst(t *testing.T) {
	ran := 0
	n := each(func(s *situation) {
		got := ledger.Decide(&s.kind, s.w, s.f, s.o, noon)
		why := s.blocked()
		if got.Run() {
			ran++
		}
		if got.Run() != (len(why) == 0) {
			t.Errorf("%s: %s, though %q", s, got, why)
		}
	})
	t.Logf("%d situations, %d of them run", n, ran)
}

// What each answer means, said one by one: an answer is given exactly when its sentence
// is true.
func TestDecideAnswersWhatItsReasonsSay(t *testing.T) {
	each(func(s *situation) {
		got := ledger.Decide(&s.kind, s.w, s.f, s.o, noon)
		is := func(r ledger.Reason, sentence bool) {
			if (got == r) != sentence {
				t.Errorf("%s: got %s, and that %s is right is %t", s, got, r, sentence)
			}
		}
		done := s.satisfied()
		factConflict := s.fact == "other args" && !done
		open := !done && !factConflict && s.claim != "none" // the claim has the word
		doubt := s.claim == "in_doubt"
		claimConflict := s.argsDiffer() && !s.again
		is(ledger.Done, done)
		is(ledger.Conflict, factConflict || open && !doubt && claimConflict)
		open = open && (doubt || !claimConflict)
		is(ledger.Ongoing, open && s.claim == "held")
		is(ledger.Failed, open && s.failed() && !s.again)
		idle := s.claim == "held" || s.claim == "retrying waiting" || s.failed() && !s.again
		settling := s.effect == "verifiable" && s.justNow() && s.proof != "none" && !idle
		is(ledger.Waiting, open && (s.claim == "retrying waiting" || settling))
		is(ledger.InDoubt, open && (doubt || !idle && !settling && !s.mayRepeat()))
		is(ledger.Missing, got.Run() && s.fact == "none" && (s.claim == "none" || s.untried() && s.w.Epoch <= s.o.Epoch))
		fresh := s.claim == "none" || s.untried()
		is(ledger.Retry, got.Run() && !fresh && s.w.Epoch <= s.o.Epoch)
		is(ledger.StaleSource, got.Run() && s.fact == "older source" && fresh && (s.o == nil || s.w.Epoch <= s.o.Epoch))
		is(ledger.StaleVersion, got.Run() && s.fact == "older version" && fresh && (s.o == nil || s.w.Epoch <= s.o.Epoch))
		is(ledger.Forced, got.Run() && (s.o == nil && s.fact == "older epoch" || s.o != nil && s.w.Epoch > s.o.Epoch || s.untried() && s.fact == "older epoch"))
	})
}

func TestI4NoBlindRepeatWhateverIsAskedFor(t *testing.T) {
	each(func(s *situation) {
		got := ledger.Decide(&s.kind, s.w, s.f, s.o, noon)
		evidence := s.o != nil && !s.o.FirstClaimedAt.IsZero()
		switch verify := ledger.MustVerify(&s.kind, s.o, noon); {
		case !evidence:
			if verify {
				t.Errorf("%s: to be verified, though no attempt was made", s)
			}
		case s.effect == "once":
			if got.Run() {
				t.Errorf("%s: %s: an effect that may not happen twice", s, got)
			}
		case s.effect == "verifiable":
			if !verify {
				t.Errorf("%s: an attempt without asking the done-check", s)
			}
		case s.effect == "keyed" && s.proof == "old":
			if !verify || got.Run() && !s.checked {
				t.Errorf("%s: %s (verify %t): the provider has forgotten the key", s, got, verify)
			}
		default:
			if verify {
				t.Errorf("%s: to be verified, though it may simply be repeated", s)
			}
		}
		if s.o != nil && got.Run() && (s.o.Held() || s.o.Trouble == ledger.Doubtful) {
			t.Errorf("%s: %s: force does not outrank a living owner, or doubt", s, got)
		}
	})
}

// Conflicts never replay: running with other arguments than an earlier attempt takes a
// want that is newer than it, by epoch, source or the version of the code.
func TestI8IdentityIsBoundOtherArgumentsNeverReplay(t *testing.T) {
	each(func(s *situation) {
		if got := ledger.Decide(&s.kind, s.w, s.f, s.o, noon); got.Run() && s.argsDiffer() && !s.again {
			t.Errorf("%s: %s", s, got)
		} else if got == ledger.Done && s.fact == "other args" && known(s.want) {
			t.Errorf("%s: other arguments counted as done", s)
		}
	})
}

// The rows that a reader asks for first, spelled out.
func TestDecideByExample(t *testing.T) {
	for _, c := range []struct {
		s    situation
		want ledger.Reason
	}{
		{situation{effect: "once", want: "plain", fact: "none", claim: "none"}, ledger.Missing},
		{situation{effect: "once", want: "plain", fact: "satisfying", claim: "none"}, ledger.Done},
		{situation{effect: "once", want: "plain", fact: "satisfying", claim: "in_doubt", stands: "plain", proof: "fresh"}, ledger.Done},
		{situation{effect: "once", want: "plain", fact: "satisfying", claim: "held", stands: "plain", proof: "fresh"}, ledger.Done},
		{situation{effect: "once", want: "forced", fact: "older epoch", claim: "none"}, ledger.Forced},
		{situation{effect: "once", want: "forced", fact: "older epoch", claim: "held", stands: "plain", proof: "fresh"}, ledger.Ongoing},
		{situation{effect: "once", want: "forced", fact: "older epoch", claim: "in_doubt", stands: "plain", proof: "fresh"}, ledger.InDoubt},
		{situation{effect: "once", want: "plain", fact: "none", claim: "held", stands: "plain", proof: "fresh"}, ledger.Ongoing},
		{situation{effect: "once", want: "plain", fact: "none", claim: "abandoned long ago", stands: "plain", proof: "fresh"}, ledger.InDoubt},
		{situation{effect: "once", want: "plain", fact: "none", claim: "retrying due", stands: "plain", proof: "none"}, ledger.Retry},
		{situation{effect: "once", want: "plain", fact: "none", claim: "retrying due", stands: "plain", proof: "fresh"}, ledger.InDoubt},
		{situation{effect: "once", want: "plain", fact: "older version", claim: "none"}, ledger.Done},
		{situation{effect: "repeatable", want: "plain", fact: "older version", claim: "none"}, ledger.StaleVersion},
		{situation{effect: "tx", want: "plain", fact: "older version", claim: "retrying due", stands: "plain"}, ledger.Retry},
		{situation{effect: "repeatable", want: "plain", fact: "older source", claim: "none"}, ledger.StaleSource},
		{situation{effect: "repeatable", want: "plain", fact: "other args", claim: "none"}, ledger.Conflict},
		{situation{effect: "repeatable", want: "unknown args", fact: "other args", claim: "none"}, ledger.Done},
		{situation{effect: "repeatable", want: "other args", fact: "none", claim: "failed", stands: "plain", proof: "fresh"}, ledger.Conflict},
		{situation{effect: "repeatable", want: "forced, other args", fact: "none", claim: "failed", stands: "plain", proof: "fresh"}, ledger.Forced},
		{situation{effect: "repeatable", want: "plain", fact: "none", claim: "failed", stands: "plain", proof: "fresh"}, ledger.Failed},
		{situation{effect: "repeatable", want: "plain", fact: "none", claim: "called again", stands: "plain", proof: "fresh"}, ledger.Missing},
		{situation{effect: "repeatable", want: "plain", fact: "none", claim: "called again by another", stands: "plain", proof: "fresh"}, ledger.Missing},
		{situation{effect: "repeatable", want: "other args", fact: "none", claim: "called again", stands: "plain", proof: "none"}, ledger.Conflict},
		{situation{effect: "once", want: "plain", fact: "none", claim: "called again", stands: "plain", proof: "fresh"}, ledger.InDoubt},
		{situation{effect: "repeatable", want: "newer source", fact: "none", claim: "failed", stands: "plain", proof: "fresh"}, ledger.Retry},
		{situation{effect: "repeatable", want: "plain", fact: "none", claim: "returned", stands: "plain"}, ledger.Missing},
		{situation{effect: "repeatable", want: "plain", fact: "none", claim: "retrying waiting", stands: "plain"}, ledger.Waiting},
		{situation{effect: "repeatable", want: "plain", fact: "none", claim: "abandoned just now", stands: "plain", proof: "fresh"}, ledger.Retry},
		{situation{effect: "keyed", want: "plain", fact: "none", claim: "abandoned just now", stands: "plain", proof: "fresh"}, ledger.Retry},
		{situation{effect: "keyed", want: "plain", fact: "none", claim: "abandoned just now", stands: "plain", proof: "old"}, ledger.InDoubt},
		{situation{effect: "keyed", checked: true, want: "plain", fact: "none", claim: "abandoned just now", stands: "plain", proof: "old"}, ledger.Retry},
		{situation{effect: "verifiable", want: "plain", fact: "none", claim: "abandoned just now", stands: "plain", proof: "fresh"}, ledger.Waiting},
		{situation{effect: "verifiable", want: "plain", fact: "none", claim: "abandoned long ago", stands: "plain", proof: "fresh"}, ledger.Retry},
		{situation{effect: "verifiable", want: "forced", fact: "none", claim: "failed just now", stands: "plain", proof: "fresh"}, ledger.Waiting},
		{situation{effect: "verifiable", want: "plain", fact: "none", claim: "failed just now", stands: "plain", proof: "fresh"}, ledger.Failed},
	} {
		c.s.build()
		if got := ledger.Decide(&c.s.kind, c.s.w, c.s.f, c.s.o, noon); got != c.want {
			t.Errorf("%s: %s, want %s", &c.s, got, c.want)
		}
	}
}

// An attempt that begins at the horizon's end would end past it: the timeout counts.
func TestTheHorizonEndsATimeoutEarly(t *testing.T) {
	kind := &ledger.Type{Effect: ledger.Keyed(horizon), Timeout: timeout}
	for _, c := range []struct {
		age  time.Duration
		want ledger.Reason
	}{{0, ledger.Retry}, {horizon - timeout - 1, ledger.Retry}, {horizon - timeout, ledger.InDoubt}, {horizon, ledger.InDoubt}} {
		o := &ledger.Open{Trouble: ledger.Retrying, Attempts: 1, FirstClaimedAt: noon.Add(-c.age)}
		if got := ledger.Decide(kind, ledger.Want{}, nil, o, noon); got != c.want {
			t.Errorf("first claimed %s ago: %s, want %s", c.age, got, c.want)
		}
	}
}

func TestReasonsAreAllThereAndTheirRunIsNamed(t *testing.T) {
	run := 0
	for _, r := range ledger.Reasons {
		if r.Run() {
			run++
		}
	}
	if len(ledger.Reasons) != 11 || run != 5 || ledger.Reason("").Run() {
		t.Errorf("%d reasons, %d of them run", len(ledger.Reasons), run)
	}
	seen := map[ledger.Reason]bool{}
	each(func(s *situation) { seen[ledger.Decide(&s.kind, s.w, s.f, s.o, noon)] = true })
	for _, r := range ledger.Reasons {
		if !seen[r] {
			t.Errorf("no situation leads to %s", r)
		}
	}
}

// A provider that knows the key must see the same one for a repeat, and another one for
// forced work: else it would answer that with its old reply.
func TestEffectKeyIsStableWithinAnEpochAndDiffersBetween(t *testing.T) {
	const pinned = "e370e8fffcb544b8cb89645a2c87e051"
	if got := ledger.EffectKey("send_invitation", "234/17", 0); got != pinned {
		t.Errorf("the key of an old attempt has changed: %s, was %s", got, pinned)
	}
	seen := map[string]string{}
	for _, jobType := range []string{"a", "ab", "a\x00b"} {
		for _, entity := range []string{"b", "", "bc", "c"} {
			for _, epoch := range []int64{0, 1, 2, 10} {
				what := fmt.Sprintf("%q %q %d", jobType, entity, epoch)
				k := ledger.EffectKey(jobType, entity, epoch)
				if len(k) != 32 || seen[k] != "" {
					t.Errorf("key %s of %s is that of %s too, or not 32 digits", k, what, seen[k])
				}
				seen[k] = what
			}
		}
	}
}

func TestCoversAsksForAllThatIsWanted(t *testing.T) {
	o := &ledger.Open{Fingerprint: someArgs, Epoch: 3, SourceVersion: 10}
	for want, covers := range map[string]bool{"plain": true, "unknown args": true, "forced": false, "newer source": false, "other args": false} {
		if got := o.Covers(wanted(want)); got != covers {
			t.Errorf("a claim for plain work covers %s: %t", want, got)
		}
	}
}

func TestEffectClassesSayWhatTheyAre(t *testing.T) {
	for _, c := range []struct {
		effect           ledger.Effect
		name             string
		valid, mayRepeat bool
		needsCheck       bool
		settle           time.Duration
	}{
		{ledger.Effect{}, "none", false, false, false, 0},
		{ledger.InTransaction, "InTransaction", true, true, false, 0},
		{ledger.Repeatable, "Repeatable", true, true, false, 0},
		{ledger.Keyed(time.Hour), "Keyed(1h0m0s)", true, false, false, 0},
		{ledger.Keyed(0), "Keyed(0s)", false, false, false, 0},
		{ledger.Verifiable(time.Second), "Verifiable(1s)", true, false, true, time.Second},
		{ledger.Verifiable(-1), "Verifiable(-1ns)", false, false, true, -1},
		{ledger.Once, "Once", true, false, false, 0},
	} {
		e := c.effect
		if e.String() != c.name || e.Valid() != c.valid || e.MayRepeat() != c.mayRepeat || e.NeedsCheck() != c.needsCheck || e.Settle() != c.settle {
			t.Errorf("%s: valid %t, may repeat %t, needs a check %t, settles %s", e, e.Valid(), e.MayRepeat(), e.NeedsCheck(), e.Settle())
		}
	}
}
