package sqsfake

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// A failed is an error answer of SQS.
type failed struct {
	code, message string
	status        int    // of HTTP
	old           string // the code of the older protocol, where it differs
}

func (e *failed) Error() string { return e.code + ": " + e.message }

func refuse(code, format string, args ...any) *failed {
	return &failed{code: code, message: fmt.Sprintf(format, args...), status: http.StatusBadRequest}
}

func invalid(format string, args ...any) *failed {
	return refuse("InvalidParameterValue", format, args...)
}

// actions are those of the API.
var actions = map[string]func(f *Fake, body []byte) (any, *failed){
	"CreateQueue":                  answer((*Fake).createQueue),
	"GetQueueUrl":                  answer((*Fake).getQueueURL),
	"GetQueueAttributes":           answer((*Fake).getQueueAttributes),
	"SetQueueAttributes":           answer((*Fake).setQueueAttributes),
	"ListDeadLetterSourceQueues":   answer((*Fake).listSources),
	"SendMessage":                  answer((*Fake).sendMessage),
	"SendMessageBatch":             answer((*Fake).sendMessageBatch),
	"ReceiveMessage":               nil, // it waits: see receive
	"DeleteMessage":                answer((*Fake).deleteMessage),
	"DeleteMessageBatch":           answer((*Fake).deleteMessageBatch),
	"ChangeMessageVisibility":      answer((*Fake).changeVisibility),
	"ChangeMessageVisibilityBatch": answer((*Fake).changeVisibilityBatch),
	"PurgeQueue":                   answer((*Fake).purgeQueue),
}

// answer makes an action of a function of its input. It runs under the mutex.
func answer[In, Out any](do func(*Fake, *In) (*Out, *failed)) func(*Fake, []byte) (any, *failed) {
	return func(f *Fake, body []byte) (any, *failed) {
		var in In
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, refuse("SerializationException", "%v", err)
		}
		out, fail := do(f, &in)
		if fail != nil {
			return nil, fail
		}
		return out, nil
	}
}

// ServeHTTP answers one request.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	do, known := actions[action]
	var out any
	fail := refuse("InvalidAction", "there is no action %q", r.Header.Get("X-Amz-Target"))
	if ok && known {
		f.mu.Lock()
		f.calls[action]++
		slow := f.faults.slow()
		fail = f.faults.throttle(action)
		f.mu.Unlock()
		time.Sleep(slow)
		switch {
		case fail != nil:
		case action == "ReceiveMessage":
			out, fail = f.receive(body)
		default:
			f.mu.Lock()
			out, fail = do(f, body)
			if fail == nil {
				fail = f.faults.loseAnswer(action)
			}
			f.mu.Unlock()
		}
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	if fail != nil {
		if fail.old != "" {
			w.Header().Set("x-amzn-query-error", fail.old+";Sender")
		}
		w.WriteHeader(fail.status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + fail.code, "message": fail.message})
		return
	}
	if out == nil {
		out = struct{}{}
	}
	_ = json.NewEncoder(w).Encode(out)
}

// Client is a client of the SDK that calls f directly, without a connection.
func (f *Fake) Client() *sqs.Client { return client("http://sqs.fake", direct{f}) }

// ClientOf is a client of the SDK for a server at such an address, as http://127.0.0.1:4566,
// that may have a Fake behind it.
func ClientOf(endpoint string) *sqs.Client { return client(endpoint, nil) }

func client(endpoint string, by sqs.HTTPClient) *sqs.Client {
	return sqs.New(sqs.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(endpoint),
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:   by,
	})
}

type direct struct{ f *Fake }

func (d direct) Do(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	// As over a wire: who hangs up gets no answer, and what was asked for happens.
	got := make(chan *http.Response, 1)
	go func() {
		w := httptest.NewRecorder()
		if r.Body == nil {
			r.Body = http.NoBody
		}
		d.f.ServeHTTP(w, r)
		got <- w.Result()
	}()
	select {
	case res := <-got:
		return res, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}
