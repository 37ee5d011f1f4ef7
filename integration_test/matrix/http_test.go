package matrix_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// The door is where requests come in, so it has no message and no worker: a server behind the
// proxy is asked, and when its answer is not final a second server, in turn, as a client does
// behind a load balancer. Its cases are named as the others are: TestMatrix/door/once/….

// doorClasses are the effects that an operation may have.
var doorClasses = map[string]ledger.Effect{
	"in transaction": ledger.InTransaction, "once": ledger.Once, "repeatable": ledger.Repeatable,
	"keyed": ledger.Keyed(time.Hour), "verifiable": ledger.Verifiable(0),
}

// What every case asks for, in this order: the second is the first again, the third is refused
// with a 402 that is stored, and the answer to the last expires.
var doorKeys = []string{"a", "a", "refused", "b"}

func playTheDoor(t *testing.T) {
	databases := &lender{}
	databases.of(t)
	classes := slices.Sorted(maps.Keys(doorClasses))
	random := rand.New(rand.NewPCG(seed(), 1000))
	if !full() {
		classes = []string{"in transaction", classes[random.IntN(len(classes))]}
	}
	for i, class := range classes {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			inner := &scope{TB: t}
			d := newDoor(inner, databases, class, strike{})
			d.play(strike{})
			writes := d.strikable()
			inner.end()
			t.Logf("can be struck: %v", writes)
			chosen := rand.New(rand.NewPCG(seed(), uint64(1001+i))).IntN(len(writes) * len(faults)) // in a sample, with the one after the next
			for j, target := range writes {
				for k, f := range faults {
					if n := j*len(faults) + k; !full() && n != chosen && n != (chosen+len(faults)+1)%(len(writes)*len(faults)) {
						continue
					}
					t.Run(target.String()+"/"+string(f), func(t *testing.T) {
						t.Parallel()
						hit := strike{target, f}
						d := newDoor(t, databases, class, hit)
						d.play(hit)
						counts[postgres].add(t.Name(), f, d.tap.hits())
					})
				}
			}
		})
	}
}

// A door is one case.
type door struct {
	*world
	class  string
	tap    *tap
	victim *process // nil: it is in this process
	urls   []string // of the victim and the second server
	said   map[string]doorReply
}

type doorReply struct {
	status   int
	text     string // the status, the kept headers and the body
	problem  string
	replayed bool
}

func newDoor(t testing.TB, from *lender, class string, hit strike) *door {
	t.Helper()
	d := &door{class: class, said: map[string]doorReply{}, world: &world{TB: t, scenario: &scenario{}, database: from.take(t)}}
	d.tap = d.newTap(hit)
	return d
}

// strikable are the writes at the door: what a process writes when it starts is struck elsewhere.
func (d *door) strikable() (all []write) {
	for _, w := range d.tap.list() {
		switch w.name {
		case "job type: register", "lease: join", "lease: renew", "lease: leave", "lease: declare dead":
			continue
		}
		if w.n <= 2 {
			all = append(all, write{victim, w.name, w.n, false})
		}
	}
	return all
}

// play asks for everything until it has a final answer, and checks what came of it.
func (d *door) play(hit strike) {
	d.Helper()
	if hit.fault.kills() {
		d.urls = append(d.urls, d.ownProcess())
	} else {
		d.urls = append(d.urls, d.serveDoor("victim", d.tap.proxy.DSN()))
	}
	d.urls = append(d.urls, d.serveDoor("second", d.dsn))
	for _, key := range doorKeys {
		got := d.insist(key)
		if first, again := d.said[key]; again && (first.text != got.text || !got.replayed && first.problem == "") {
			d.Errorf("%s was answered %q, and then %q", key, first.text, got.text)
		}
		d.said[key] = got
	}
	d.exec(`UPDATE oncemore.response SET expires_at = now() - interval '1 s' WHERE entity LIKE '% b'`)
	for turn, end := 0, time.Now().Add(patience); ask[bool](d.world, `SELECT EXISTS (SELECT FROM oncemore.response WHERE expires_at < now())`); turn++ {
		if _, err := d.try(turn, "DELETE", ""); err != nil && time.Now().After(end) {
			d.Fatalf("what has expired stays: %v", err)
		}
	}
	if d.victim != nil {
		d.victim.finish()
	}
	d.checkDoor(hit)
}

// insist asks the servers in turn until one gives a final answer.
func (d *door) insist(key string) doorReply {
	d.Helper()
	for turn, end := 0, time.Now().Add(patience); ; turn++ {
		got, err := d.try(turn, "POST", key)
		if err == nil && (got.problem == "" && got.status < 500 || got.problem == "outcome-unknown") {
			return got
		}
		if time.Now().After(end) {
			d.Fatalf("after %v %s has no final answer: %v, error %v\n%s", patience, key, got, err, d.story())
		}
		time.Sleep(20 * time.Millisecond) // as clients do
	}
}

func (d *door) try(turn int, method, key string) (doorReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, d.urls[turn%len(d.urls)]+"/orders", io.NopCloser(strings.NewReader(key)))
	if err != nil {
		return doorReply{}, err
	}
	r.Header.Set(ledgerhttp.Header, key)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return doorReply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	got := doorReply{status: resp.StatusCode, replayed: resp.Header.Get(ledgerhttp.Replayed) != ""}
	if resp.Header.Get("Content-Type") == "application/problem+json" {
		var p struct{ Type string }
		_ = json.Unmarshal(body, &p)
		_, got.problem, _ = strings.Cut(p.Type, "#")
		got.problem = cmp.Or(got.problem, "malformed")
	}
	got.text = fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Etag"), " ", string(body))
	return got, err
}

// checkDoor looks whether each key has its one effect, fact and answer, or its doubt.
func (d *door) checkDoor(hit strike) {
	d.Helper()
	doubts := 0
	for _, key := range []string{"a", "refused", "b"} {
		got, want := d.said[key], 201
		if key == "refused" {
			want = 402
		}
		d.checkEffects(key)
		switch {
		case got.problem == "outcome-unknown":
			doubts++
			if d.class != "once" {
				d.Errorf("%s is in doubt", key)
			}
			continue
		case got.status != want:
			d.Errorf("%s was answered %s, want %d", key, got.text, want)
		}
		again := d.insistAgain(key)
		if key != "b" && again.text != got.text {
			d.Errorf("%s was answered %q, and now %q", key, got.text, again.text)
		}
		if key == "b" && again.problem != "response-expired" {
			d.Errorf("the answer to b has expired, and now it is %q", again.text)
		}
	}
	// One strike interrupts one request, for they come one after the other. A lease that is lost
	// besides, because the machine was busy, is one more fault: it shows as one more life, beside
	// the one that the victim begins when the fault has taken its lease.
	explained := max(0, ask[int](d.world, `SELECT count(*) FROM oncemore.worker`)-len(d.urls))
	if len(d.tap.hits()) > 0 {
		if hit.fault == cutOff || hit.fault == slow {
			explained = max(0, explained-1)
		}
		explained++
	}
	if doubts > explained {
		d.Errorf("%d keys are in doubt, and %d faults can explain it\n%s", doubts, explained, d.story())
	}
	for what, is := range map[string]bool{
		"a fact for each that is not in doubt": ask[int](d.world, `SELECT count(*) FROM oncemore.ledger`) == 3-doubts,
		"no answer without a fact":             ask[bool](d.world, `SELECT NOT EXISTS (SELECT FROM oncemore.response r WHERE NOT EXISTS (SELECT FROM oncemore.ledger l WHERE (l.job_type, l.entity, coalesce(l.epoch, 0)) = (r.job_type, r.entity, r.epoch)))`),
		"no claim but of what is in doubt":     ask[int](d.world, `SELECT count(*) FROM oncemore.claim c WHERE NOT `+outranked) == doubts,
		"no dispute where nobody took over":    hit.fault == cutOff || hit.fault == slow || ask[int](d.world, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'disputed'`) == 0,
	} {
		if !is {
			d.Errorf("not so: %s\n%s", what, d.story())
		}
	}
}

// checkEffects holds the effects of a key against what its class promises, and the doubt about it.
func (d *door) checkEffects(key string) {
	d.Helper()
	inside := ask[int](d.world, `SELECT count(*) FROM inside WHERE entity = $1`, key)
	outside := ask[int](d.world, `SELECT count(*) FROM outside WHERE entity = $1`, key)
	keys := ask[int](d.world, `SELECT count(DISTINCT key) FROM outside WHERE entity = $1`, key)
	var is bool
	switch {
	case key == "refused":
		is = inside+outside == 0
	case d.class == "in transaction":
		is = inside == 1 && outside == 0
	case d.said[key].problem == "outcome-unknown":
		is = outside <= 1
	case d.class == "once" || d.class == "verifiable":
		is = outside == 1
	default: // by one key, however often
		is = keys == 1
	}
	if !is {
		d.Errorf("%s has %d effects inside, and %d outside under %d keys", key, inside, outside, keys)
	}
}

// insistAgain asks for what is done, until a server can say.
func (d *door) insistAgain(key string) doorReply {
	d.Helper()
	for turn, end := 1, time.Now().Add(patience); ; turn++ {
		got, err := d.try(turn, "POST", key)
		if err == nil && (got.replayed || got.problem == "response-expired") {
			return got
		}
		if time.Now().After(end) {
			d.Fatalf("%s is not shown again: %v, error %v", key, got, err)
		}
	}
}

// serveDoor is a server in this process.
func (d *door) serveDoor(name, dsn string) (url string) {
	d.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	log := slog.New(slog.NewTextHandler(d.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("by", name)
	go func() {
		defer close(ended)
		if err := openDoor(ctx, l, d.class, name, dsn, d.pool, log); err != nil {
			d.Errorf("server %s: %v", name, err)
		}
	}()
	d.Cleanup(func() { stop(); <-ended })
	return "http://" + l.Addr().String()
}

// openDoor serves until ctx ends.
func openDoor(ctx context.Context, l net.Listener, class, name, dsn string, world *pgxpool.Pool, log *slog.Logger) error {
	pool, err := openPool(dsn, name, 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Name: name, Lease: lease, Log: log, Scope: func(*http.Request) (string, error) { return "anna", nil }})
	if err != nil {
		return err
	}
	o := ledgerhttp.Operation{Name: "POST /orders", Effect: doorClasses[class]}
	if class == "verifiable" {
		o.Check = func(w http.ResponseWriter, r *http.Request) (done bool, err error) {
			err = world.QueryRow(r.Context(), `SELECT EXISTS (SELECT FROM outside WHERE key = $1)`, ledgerhttp.EffectKey(r.Context())).Scan(&done)
			if done {
				doorAnswer(w, r)
			}
			return done, err
		}
	}
	guarded, err := keys.Guard(ctx, o, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get(ledgerhttp.Header)
		var err error
		if tx := ledgerhttp.Tx(r.Context()); tx != nil {
			_, err = tx.Exec(r.Context(), `/* door: effect */ INSERT INTO inside (job, entity) VALUES ('door', $1)`, key)
		} else if key != "refused" {
			_, err = world.Exec(r.Context(), `INSERT INTO outside (job, entity, key) VALUES ('door', $1, $2)`, key, ledgerhttp.EffectKey(r.Context()))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		doorAnswer(w, r)
	}))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /orders", guarded)
	mux.HandleFunc("DELETE /orders", func(w http.ResponseWriter, r *http.Request) { _, _ = keys.Expire(r.Context()) })
	server := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { <-ctx.Done(); _ = server.Close() }()
	_ = server.Serve(l)
	last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = keys.Close(last) // its lease's way may have been cut
	return nil
}

// doorAnswer is what the key, and nothing else, says.
func doorAnswer(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get(ledgerhttp.Header)
	w.Header().Set("Etag", `"`+key+`"`)
	status := http.StatusCreated
	if key == "refused" {
		status = http.StatusPaymentRequired
	}
	w.WriteHeader(status)
	fmt.Fprintln(w, "order of", key)
}

// doorEnv names the class whose server a process of the test binary is to be.
const doorEnv = "ONCEMORE_MATRIX_DOOR"

// doorProcess is what such a process does, until its standard input ends.
func doorProcess(class string) error {
	ctx, stop := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); stop() }()
	world, err := openPool(os.Getenv("OUTSIDE_URL"), "victim", 2)
	if err != nil {
		return err
	}
	defer world.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	err = openDoor(ctx, l, class, "victim", os.Getenv("DATABASE_URL"), world, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if ctx.Err() != nil {
		return nil // it may be asked to end before it has begun
	}
	return err
}

// finish has the server end, and waits until it has.
func (p *process) finish() {
	_ = p.life.Close()
	late := time.AfterFunc(patience, func() { _ = p.Process.Kill() }) // which is not as planned
	defer late.Stop()
	<-p.ended
}

func (d *door) ownProcess() (url string) {
	d.Helper()
	out, in := io.Pipe()
	defer out.Close() // it says one line, and no more
	d.victim = d.tap.startProcess(in, doorEnv+"="+d.class, "DATABASE_URL="+d.tap.proxy.DSN(), "OUTSIDE_URL="+d.dsn)
	go func() { <-d.victim.ended; _ = in.Close() }()
	d.tap.pid <- d.victim.Process.Pid
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		d.Fatalf("the server did not begin: %v", err)
	}
	return strings.TrimSpace(line)
}
