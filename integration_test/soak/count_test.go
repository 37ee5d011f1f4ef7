package main

import (
	"maps"
	"testing"
	"time"
)

// A check that cannot fail says nothing: here is what each of them is for.
func TestTheCountFindsWhatIsWrong(t *testing.T) {
	const (
		lost      = "lost: neither done as asked, nor open, nor parked"
		beyond    = "doubled beyond what the class allows"
		noEffect  = "done without any effect"
		noFact    = "an effect, and neither a fact nor open"
		wrongKey  = "effects under another key than their epoch's"
		stale     = "made of an old version last"
		disorder  = "facts replaced by one of no higher epoch"
		stray     = "known, and never asked for"
		underway  = "neither done, nor listed as a trouble: still on the way"
		doubtful  = "in doubt after all doubts were resolved"
		unplanned = "failed, and it was not their fate"
		unfailed  = "done, and it was their fate to fail"
	)
	done := func(epochs ...int64) func(*count, *record) {
		return func(_ *count, r *record) {
			for _, e := range epochs {
				r.facts = append(r.facts, fact{Epoch: e})
			}
		}
	}
	rows := func(epochs ...int64) func(*count, *record) {
		return func(_ *count, r *record) {
			for _, e := range epochs {
				r.rows = append(r.rows, row{Epoch: e})
			}
		}
	}
	// had is an effect of a process, by its pid.
	had := func(jobType string, epoch, version int64, pid int) func(*count, *record) {
		return func(c *count, r *record) {
			e := Effect{Type: jobType, ID: 1, Epoch: epoch, Version: version, Pid: pid, Began: 100, At: 200}
			e.Key = keyOf(&e)
			r.effects = append(r.effects, len(c.effects))
			c.effects = append(c.effects, e)
		}
	}
	is := func(trouble string, epoch int64) func(*count, *record) {
		return func(_ *count, r *record) { r.open = &open{Trouble: trouble, Epoch: epoch} }
	}
	doomed := func(c *count, _ *record) { c.hopeless = func(*jobType, int64) bool { return true } }
	type what = []func(*count, *record)
	for name, test := range map[string]struct {
		jobType string
		what    what
		want    []string
	}{
		"done":                                  {"once", what{done(0), had("once", 0, 0, 1)}, nil},
		"nothing known":                         {"once", nil, []string{lost}},
		"done, but forced and not done":         {"keyed", what{done(0), had("keyed", 0, 0, 1), func(c *count, _ *record) { c.demand.epochs[Entity{"keyed", 1}] = 7 }}, []string{lost}},
		"forced and done":                       {"keyed", what{done(0, 7), had("keyed", 0, 0, 1), had("keyed", 7, 0, 1), func(c *count, _ *record) { c.demand.epochs[Entity{"keyed", 1}] = 7 }}, nil},
		"failed":                                {"once", what{is("failed", 0), doomed}, nil},
		"failed by chance":                      {"once", what{is("failed", 0)}, []string{unplanned}},
		"done, though doomed":                   {"once", what{done(0), had("once", 0, 0, 1), doomed}, []string{unfailed}},
		"in doubt at the end":                   {"once", what{is("in_doubt", 0)}, []string{doubtful}},
		"parked":                                {"once", what{func(_ *count, r *record) { r.parked = true }}, nil},
		"held at the end":                       {"once", what{is("", 0)}, []string{underway}},
		"retrying at the end":                   {"tx", what{is("retrying", 0)}, []string{underway}},
		"twice, of class Once":                  {"once", what{done(0), had("once", 0, 0, 1), had("once", 0, 0, 2)}, []string{beyond}},
		"twice, Verifiable":                     {"verifiable", what{done(0), had("verifiable", 0, 0, 1), had("verifiable", 0, 0, 2)}, []string{beyond}},
		"twice, Verifiable, by a frozen one":    {"verifiable", what{done(0), had("verifiable", 0, 0, 1), had("verifiable", 0, 0, 9)}, nil},
		"twice, of class Once, by a frozen one": {"once", what{done(0), had("once", 0, 0, 1), had("once", 0, 0, 9)}, []string{beyond}},
		"twice, Keyed":                          {"keyed", what{done(0), had("keyed", 0, 0, 1), had("keyed", 0, 0, 2)}, nil},
		"twice, Repeatable":                     {"repeatable", what{done(0), had("repeatable", 0, 0, 1), had("repeatable", 0, 0, 2)}, nil},
		"twice, in the database":                {"tx", what{done(0), rows(0, 0)}, []string{beyond}},
		"once in each of two epochs":            {"tx", what{done(0, 3), rows(0, 3)}, nil},
		"another key":                           {"keyed", what{done(0), had("keyed", 0, 0, 1), func(c *count, _ *record) { c.effects[0].Key = "x" }}, []string{wrongKey}},
		"done, and no effect":                   {"tx", what{done(0)}, []string{noEffect}},
		"done anew, and no effect":              {"tx", what{done(0, 5), rows(0)}, []string{noEffect}},
		"an effect, and nothing else":           {"keyed", what{had("keyed", 0, 0, 1)}, []string{lost, noFact}},
		"an effect, and failed":                 {"keyed", what{had("keyed", 0, 0, 1), is("failed", 0), doomed}, nil},
		"a row, and failed":                     {"tx", what{rows(0), is("failed", 0), doomed}, []string{noFact}},
		"the older version is written last":     {"page", what{func(c *count, r *record) { r.facts = []fact{{Version: 6}}; c.newest[Entity{"page", 1}] = 6 }, had("page", 0, 6, 1), had("page", 0, 5, 1)}, []string{stale}},
		"the newer version was not done":        {"page", what{func(c *count, r *record) { r.facts = []fact{{Version: 5}}; c.newest[Entity{"page", 1}] = 6 }, had("page", 0, 6, 1)}, []string{lost}},
		"replaced by a lower epoch":             {"tx", what{done(7, 3), rows(3, 7)}, []string{disorder}},
		"nobody asked":                          {"tx", what{done(0), rows(0), func(c *count, _ *record) { c.demand.newest["tx"] = 0 }}, []string{stray}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &count{demand: &demand{newest: map[string]int64{test.jobType: 1}, epochs: map[Entity]int64{}}, newest: map[Entity]int64{},
				of: map[string]map[int64]*record{}, hopeless: func(*jobType, int64) bool { return false }, freezes: map[int][]freeze{9: {{Pid: 9, From: 150, To: int64(time.Minute)}}}}
			for _, change := range test.what {
				change(c, c.record(test.jobType, 1))
			}
			r := &result{}
			r.count(c)
			got := map[string]bool{}
			for _, check := range r.Checks {
				if check.N > 0 && check.Name != idleTypes {
					got[check.Name] = true
				}
			}
			if len(got) != len(test.want) {
				t.Errorf("found %v, want %q", got, test.want)
			}
			for _, want := range test.want {
				if !got[want] {
					t.Errorf("found %v, want %q", got, test.want)
				}
			}
		})
	}
}

// What a body of class Once began and did not refuse is in doubt until there is a fact.
func TestWhatMayHaveHappenedMustBeListed(t *testing.T) {
	for name, test := range map[string]struct {
		kinds []string
		fact  bool
		open  *open
		want  int64
	}{
		"begun":                           {[]string{"began"}, false, nil, 1},
		"begun, and listed":               {[]string{"began"}, false, &open{Trouble: "in_doubt"}, 0},
		"begun, and listed as failed":     {[]string{"began"}, false, &open{Trouble: "failed"}, 1},
		"begun, listed for another epoch": {[]string{"began"}, false, &open{Trouble: "in_doubt", Epoch: 4}, 1},
		"begun, done":                     {[]string{"began", ""}, true, nil, 0},
		"begun and refused":               {[]string{"began", "refused"}, false, &open{Trouble: "failed"}, 0},
		"begun, refused, and begun again": {[]string{"began", "refused", "began"}, false, &open{Trouble: "retrying"}, 1},
		"an effect of which nobody knows": {[]string{"began", ""}, false, &open{Trouble: "retrying"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := &count{of: map[string]map[int64]*record{}}
			rec := c.record("once", 1)
			rec.open = test.open
			if test.fact {
				rec.facts = []fact{{}}
			}
			for i, kind := range test.kinds {
				c.effects = append(c.effects, Effect{Kind: kind, Type: "once", ID: 1})
				rec.effects = append(rec.effects, i)
			}
			r := &result{}
			r.doubts(c)
			if got := r.of("in doubt, and not listed"); got != test.want {
				t.Errorf("%d are not listed, want %d", got, test.want)
			}
		})
	}
}

// Calling everything once more may change nothing that is done.
func TestCallingOnceMoreIsComparedEntityByEntity(t *testing.T) {
	counted := func(change func(r *record)) *count {
		c := &count{demand: &demand{epochs: map[Entity]int64{}}, newest: map[Entity]int64{}, of: map[string]map[int64]*record{}}
		r := c.record("tx", 1)
		r.facts, r.rows = []fact{{}}, []row{{}}
		change(r)
		return c
	}
	before := counted(func(*record) {})
	for name, test := range map[string]struct {
		change func(r *record)
		want   string
	}{
		"nothing":          {func(*record) {}, ""},
		"another effect":   {func(r *record) { r.rows = append(r.rows, row{}) }, "done, and done again when called once more"},
		"another fact":     {func(r *record) { r.facts = append(r.facts, fact{Epoch: 4}) }, "done, and recorded anew when called once more"},
		"a claim stays":    {func(r *record) { r.open = &open{} }, "a fact, and a claim that it outranks and that nobody swept away"},
		"a forced one too": {func(r *record) { r.open = &open{Epoch: 7} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := &result{}
			r.again(before, counted(test.change))
			for _, check := range r.Checks {
				if want := check.Name == test.want; want != (check.N != 0) {
					t.Errorf("%s: %d", check.Name, check.N)
				}
			}
		})
	}
}

// A soak that had the time must have seen each kind of torment; a short one need not.
func TestASoakThatIsLongEnoughMustHaveWithstoodEverything(t *testing.T) {
	all := map[string]int{}
	for _, d := range torments {
		all[d.name] = 1
	}
	but := maps.Clone(all)
	delete(but, "Postgres kill -9")
	long, gap := 10*time.Minute, 1500*time.Millisecond
	for name, test := range map[string]struct {
		options
		happened map[string]int
		want     int64
	}{
		"all of them":              {options{duration: long, gap: gap}, all, 0},
		"one never":                {options{duration: long, gap: gap}, but, 1},
		"too short for that":       {options{duration: time.Minute, gap: gap}, but, 0},
		"without torments":         {options{duration: long}, nil, 0},
		"none, although there was": {options{duration: long, gap: gap}, nil, int64(len(torments))},
	} {
		r := &result{Torments: test.happened}
		r.withstood(test.options)
		if got := r.of("kinds of torments that never happened"); got != test.want {
			t.Errorf("%s: %d are missed, want %d", name, got, test.want)
		}
	}
}
