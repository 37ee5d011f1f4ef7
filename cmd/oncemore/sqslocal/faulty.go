package sqslocal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// A Faulty is a proxy to an SQS that has no faults of its own. It refuses entries of batches,
// every other one after it took effect, and makes messages that are handed out visible for
// others at the same time. Of the other [sqsfake.Faults] it takes no notice.
type Faulty struct {
	endpoint string
	down     atomic.Bool
	lost     atomic.Int64

	mu     sync.Mutex
	faults sqsfake.Faults
	random *rand.Rand
	tally  sqsfake.Tally
}

// NewFaulty returns one to the server at an endpoint.
func NewFaulty(endpoint string, faults sqsfake.Faults) *Faulty {
	return &Faulty{endpoint: endpoint, faults: faults, random: rand.New(rand.NewPCG(faults.Seed, 2))}
}

// Tally says how often it was at fault.
func (f *Faulty) Tally() sqsfake.Tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tally
}

// SetDown begins an outage, or ends it: all connections are cut, also those over which the
// answer to an earlier call was to come.
func (f *Faulty) SetDown(down bool) { f.down.Store(down) }

// Serve serves a [sqsfake.Fake] or a [Faulty] on a free port of 127.0.0.1 until stop.
func Serve(h http.Handler) (s *Server, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("serve SQS: %w", err)
	}
	server := &http.Server{Handler: h}
	go func() { _ = server.Serve(listener) }()
	return &Server{Endpoint: "http://" + listener.Addr().String()}, func() { _ = server.Close() }, nil
}

// Lost is how many calls have met an outage.
func (f *Faulty) Lost() int64 { return f.lost.Load() }

type (
	request struct {
		QueueUrl string
		Entries  []map[string]any
	}
	answer struct {
		Successful []map[string]any
		Failed     []map[string]any
	}
	deliveries struct{ Messages []map[string]any }
)

// ServeHTTP passes a call on.
func (f *Faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.cut()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone
	}
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	status, out := 0, []byte(nil)
	if strings.HasSuffix(action, "Batch") {
		status, out, err = f.batch(r, body)
	} else {
		// A poll takes messages all the same when its client hangs up: so must this one.
		status, out, err = f.forward(r, body)
		if err == nil && action == "ReceiveMessage" && status == http.StatusOK {
			err = f.double(body, out)
		}
	}
	f.cut()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(status)
	_, _ = w.Write(out)
}

// cut ends the connection of a call that meets an outage.
func (f *Faulty) cut() {
	if f.down.Load() {
		f.lost.Add(1)
		panic(http.ErrAbortHandler)
	}
}

func (f *Faulty) forward(r *http.Request, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), http.MethodPost, f.endpoint, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	for _, name := range []string{"X-Amz-Target", "Content-Type", "Authorization", "X-Amz-Date"} {
		req.Header.Set(name, r.Header.Get(name))
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	return res.StatusCode, out, err
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}

// batch refuses some entries. Those that are to take effect go on to the server all the same.
func (f *Faulty) batch(r *http.Request, body []byte) (status int, out []byte, err error) {
	var in request
	if err := json.Unmarshal(body, &in); err != nil {
		return 0, nil, err
	}
	refused := map[any]bool{}
	var on []map[string]any
	f.mu.Lock()
	f.tally.Entries += len(in.Entries)
	for _, e := range in.Entries {
		if f.random.Float64() < f.faults.PartialFailures {
			f.tally.Refused++
			if refused[e["Id"]] = true; f.tally.Refused%2 == 0 {
				continue
			}
		}
		on = append(on, e)
	}
	f.mu.Unlock()
	if len(refused) == 0 {
		return f.forward(r, body)
	}
	var a answer
	status = http.StatusOK
	if in.Entries = on; len(on) > 0 {
		if body, err = json.Marshal(in); err != nil {
			return 0, nil, err
		}
		if status, out, err = f.forward(r, body); err != nil || status != http.StatusOK {
			return status, out, err
		}
		if err := json.Unmarshal(out, &a); err != nil {
			return 0, nil, err
		}
	}
	told := answer{Successful: []map[string]any{}, Failed: []map[string]any{}}
	for _, e := range a.Successful {
		if !refused[e["Id"]] {
			told.Successful = append(told.Successful, e)
		}
	}
	for _, e := range a.Failed {
		if !refused[e["Id"]] {
			told.Failed = append(told.Failed, e)
		}
	}
	for id := range refused {
		told.Failed = append(told.Failed, map[string]any{"Id": id, "Code": "InternalError", "Message": "please try again", "SenderFault": false})
	}
	out, err = json.Marshal(told)
	return status, out, err
}

// double makes some of what was handed out visible for others.
func (f *Faulty) double(in, out []byte) error {
	var r request
	var ds deliveries
	if err := json.Unmarshal(in, &r); err != nil {
		return err
	}
	if err := json.Unmarshal(out, &ds); err != nil {
		return err
	}
	var twice []any
	f.mu.Lock()
	f.tally.HandedOut += len(ds.Messages)
	for _, m := range ds.Messages {
		if f.random.Float64() < f.faults.Duplicates {
			f.tally.Duplicates++
			twice = append(twice, m["ReceiptHandle"])
		}
	}
	f.mu.Unlock()
	for _, handle := range twice {
		err := Call(context.Background(), f.endpoint, "ChangeMessageVisibility", map[string]any{"QueueUrl": r.QueueUrl, "ReceiptHandle": handle, "VisibilityTimeout": 0}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}
