package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
)

// post sends a body as a producer does that has none of our code.
func (s *sqsStage) post(body string) {
	s.Helper()
	in, err := json.Marshal(map[string]string{"QueueUrl": s.url, "MessageBody": body})
	if err != nil {
		s.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/", bytes.NewReader(in))
	r.Header.Set("Content-Type", "application/x-amz-json-1.0")
	r.Header.Set("X-Amz-Target", "AmazonSQS.SendMessage")
	w := httptest.NewRecorder()
	if s.fake.ServeHTTP(w, r); w.Code != http.StatusOK {
		s.Fatalf("%d: %s", w.Code, w.Body)
	}
}

// truth looks once.
func (s *sqsStage) truth(what, sql string) {
	s.Helper()
	if s.number(`SELECT ((`+sql+`))::int`) != 1 {
		s.Errorf("not so: %s", what)
	}
}

// What a producer sends in one message takes from each other neither their turn nor their text.
func TestABadItemOfAPackIsSetAsideAloneAndTheOthersAreWorked(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	var items []string
	for n := range 1000 {
		entity := fmt.Sprint(n)
		if n == 500 {
			entity = ""
		}
		items = append(items, fmt.Sprintf(`{"entity":%q,"args":{"N":%d,"more":%q}}`, entity, n, strings.Repeat("x", 260)))
	}
	s.post(`{"type":"entry","items":[` + strings.Join(items, ",") + `]}`)
	stop := s.work(map[string]queue.Queue{"": s.open(s.url, sqsqueue.Options{})})
	s.awaitEnd()
	stop()
	s.truth("999 are done, and one is set aside", `
SELECT (SELECT count(*) = 999 FROM oncemore.ledger) AND (SELECT count(*) = 1 FROM oncemore.parked)
   AND EXISTS (SELECT FROM oncemore.parked WHERE reason = 'undecodable' AND type = 'entry' AND body LIKE '{"entity":"","args":{"N":500,%}' AND error LIKE '%empty entity%')`)
}

// However an item is bad, it stands alone, and with all that was sent of it.
func TestAllThatWasSentOfABadItemIsKept(t *testing.T) {
	long := strings.Repeat("é", 257)
	for name, c := range map[string]struct{ item, body, says string }{
		"no entity":           {`{"args":{"N":3}}`, `{"args":{"N":3}}`, "empty entity"},
		"an entity of a sort": {`{"entity":3,"args":{"N":3}}`, `{"entity":3,"args":{"N":3}}`, "empty entity"},
		"a long entity":       {`{"entity":"` + long + `","args":{"N":3}}`, `{"entity":"` + long + `","args":{"N":3}}`, "514 bytes"},
		"arguments misnamed":  {`{"entity":"3","arguments":{"N":3}}`, `{"entity":"3","arguments":{"N":3}}`, "empty entity"},
		"a number":            {`3`, `3`, "empty entity"},
		"large arguments":     {`{"entity":"3","args":{"N":3,"more":"` + strings.Repeat("x", 100<<10) + `"}}`, `{"N":3,"more":"` + strings.Repeat("x", 100<<10) + `"}`, "allowed are 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSQSStage(t)
			s.post(`{"type":"entry","items":[{"entity":"1","args":{"N":1}},` + c.item + `,{"entity":"2","args":{"N":2}}]}`)
			stop := s.work(map[string]queue.Queue{"": s.open(s.url, sqsqueue.Options{})})
			s.awaitEnd()
			stop()
			s.truth("both neighbours are done", `SELECT count(*) = 2 FROM oncemore.ledger WHERE entity IN ('1', '2')`)
			var body, says string
			if err := s.pool.QueryRow(t.Context(), `SELECT body, error FROM oncemore.parked`).Scan(&body, &says); err != nil {
				t.Fatal(err)
			}
			if body != c.body || !strings.Contains(says, c.says) {
				t.Errorf("kept: %.200s (%d bytes), because %s", body, len(body), says)
			}
		})
	}
}

// SQS forgets what is acknowledged, so what no worker can read is kept to the last byte.
func TestAllOfAnUnreadableBodyIsKept(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	for _, body := range []string{"<xml>" + strings.Repeat("é", 100<<10), strings.Repeat("y", 1<<20)} {
		s.post(body)
	}
	stop := s.work(map[string]queue.Queue{"": s.open(s.url, sqsqueue.Options{})})
	s.awaitEnd()
	stop()
	s.truth("both are there as they were sent", `
SELECT count(*) = 2 AND bool_and(body IN ('<xml>' || repeat('é', 102400), repeat('y', 1048576))) FROM oncemore.parked`)
}
