package sqsqueue_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

const (
	notification = `{"Type":"Notification","MessageId":"22b80b92","TopicArn":"arn:aws:sns:us-east-1:1:topic","Message":"{\"type\":\"send\",\"entity\":\"7\",\"args\":{\"id\":7}}",
		"Timestamp":"2012-05-02T00:54:06.655Z","SignatureVersion":"1","MessageAttributes":{"traceparent":{"Type":"String","Value":"00-aa-bb-01"}}}`
	event  = `{"version":"0","id":"6a7e8feb","detail-type":"Order placed","source":"shop","account":"1","time":"2026-01-01T00:00:00Z","region":"us-east-1","resources":[],"detail":{"order":17}}`
	upload = `{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{"s3SchemaVersion":"1.0","bucket":{"name":"pictures","arn":"arn"},
		"object":{"key":"a+b.jpg","size":1024,"eTag":"d41d8","versionId":"v1","sequencer":"0055AED6DCD90281E5"}}}]}`
)

func TestEnvelopesAreOpened(t *testing.T) {
	fromEvent := sqsqueue.FromEventBridge(func(e sqsqueue.Event) (queue.Message, error) {
		if e.DetailType != "Order placed" {
			return queue.Message{}, errors.New("another event")
		}
		return queue.Message{Type: "order", Items: []queue.Item{{Entity: e.ID, Args: e.Detail}}}, nil
	})
	fromS3 := sqsqueue.FromS3("thumbnail", func(o sqsqueue.S3Object) (queue.Item, error) {
		args, err := json.Marshal(o)
		return queue.Item{Entity: o.Bucket + "/" + o.Key, Args: args}, err
	})
	for _, c := range []struct {
		decode     sqsqueue.Decoder
		body, want string
	}{
		{sqsqueue.FromSNS(sqsqueue.Decode), notification, `send 7 {"id":7} 00-aa-bb-01`},
		{sqsqueue.FromSNS(sqsqueue.Decode), `{"type":"send","entity":"8","args":1}`, `send 8 1 `},
		{fromEvent, event, `order 6a7e8feb {"order":17} `},
		{fromEvent, `{"type":"send","entity":"8","args":1}`, `error: not an event of EventBridge`},
		{fromEvent, strings.Replace(event, "Order placed", "Order lost", 1), `error: another event`},
		{fromS3, upload, `thumbnail pictures/a+b.jpg {"Event":"ObjectCreated:Put","Bucket":"pictures","Key":"a+b.jpg","Size":1024,"ETag":"d41d8","VersionID":"v1","Sequencer":"0055AED6DCD90281E5"} `},
		{fromS3, `{"Service":"Amazon S3","Event":"s3:TestEvent"}`, `error: not a notification of S3: it has no records`},
		{fromS3, `7`, `error: not a notification of S3`},
	} {
		m, err := c.decode(sqsqueue.Raw{Body: []byte(c.body)})
		var got string
		if err != nil {
			got = "error: " + err.Error()
		} else {
			got = m.Type + " " + m.Items[0].Entity + " " + string(m.Items[0].Args) + " " + m.Trace
		}
		if got != c.want && !(err != nil && strings.HasPrefix(got, c.want)) {
			t.Errorf("%s\n%s\nwant %s", c.body, got, c.want)
		}
	}
}

// What cannot be read is handed out as it is: the worker keeps it aside. It stops nothing
// and goes round nowhere.
func TestWhatCannotBeDecodedIsHandedOutAsItIs(t *testing.T) {
	o := sqsqueue.Options{Decode: func(r sqsqueue.Raw) (queue.Message, error) {
		if string(r.Body) == "panic" {
			panic("as asked for")
		}
		return sqsqueue.Decode(r)
	}}
	bubble(t, "q", nil, o, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		for body, known := range map[string]queue.Message{
			"hello":                                 {},
			"panic":                                 {},
			`{"type":"send"}`:                       {Type: "send"},
			`{"type":"send","run":""}`:              {Type: "send"},
			`{"type":"send","entity":"","args":{}}`: {Type: "send", Items: []queue.Item{{Args: json.RawMessage(`{}`)}}},
		} {
			if _, err := fake.Client().SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: new(q.URL()), MessageBody: &body}); err != nil {
				t.Fatal(err)
			}
			d := receive(t, q, 1)[0]
			if string(d.Bad) != body || !reflect.DeepEqual(d.Message, known) {
				t.Errorf("%s: %+v", body, d)
			}
			ack(t, q, d)
		}
	})
}
