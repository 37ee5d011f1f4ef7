// Package sqslocal runs a private SQS: fauxqs, a server that somebody else wrote. It is
// what the demo, the examples and the tests use, so that nothing here is tried against our
// own idea of SQS alone.
//
// It comes from npm, pinned by the lock file beside this one, and is installed once into a
// folder of the user's cache; it needs Node.js. It listens on a free port of 127.0.0.1,
// keeps all in memory, and ends with the process that started it, however that ends.
package sqslocal

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed package.json package-lock.json .npmrc run.mjs
var files embed.FS

// A Server is one that runs. One that somebody else runs is a Server with nothing but its
// Endpoint.
type Server struct {
	Endpoint string // as http://127.0.0.1:4566

	node  *exec.Cmd
	stdin io.Closer
}

// installed returns the folder in which the server is.
var installed = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return Install(ctx, "sqslocal", files)
})

// Start starts a server, which ends with [Server.Stop], or with this process. What it has
// to say goes to log. The first Start on a machine installs it, which needs a registry of
// npm and takes some seconds.
func Start(ctx context.Context, log io.Writer) (*Server, error) {
	dir, err := installed()
	if err != nil {
		return nil, fmt.Errorf("install fauxqs: %w", err)
	}
	s := &Server{node: exec.Command("node", "run.mjs")}
	s.node.Dir, s.node.Stderr = dir, log
	if s.stdin, err = s.node.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start fauxqs: %w", err)
	}
	out, err := s.node.StdoutPipe()
	if err == nil {
		err = s.node.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start fauxqs: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	late := context.AfterFunc(ctx, func() { _ = s.node.Process.Kill() })
	defer late()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("start fauxqs: it did not say where it listens: %w", err)
	}
	s.Endpoint = strings.TrimSpace(line)
	return s, nil
}

// Stop ends the server that [Start] has started; of another it does nothing.
func (s *Server) Stop() {
	if s.node == nil {
		return
	}
	_ = s.stdin.Close()
	late := time.AfterFunc(10*time.Second, func() { _ = s.node.Process.Kill() })
	defer late.Stop()
	_ = s.node.Wait()
}

// Environment is what a process needs so that its AWS SDK talks to the server alone.
func (s *Server) Environment() []string {
	return []string{"AWS_ENDPOINT_URL_SQS=" + s.Endpoint, "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
		"AWS_SESSION_TOKEN=", "AWS_PROFILE=", "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"}
}

// Create makes a queue with such attributes and returns its URL.
func (s *Server) Create(ctx context.Context, name string, attributes map[string]string) (url string, err error) {
	var out struct{ QueueUrl string }
	err = Call(ctx, s.Endpoint, "CreateQueue", map[string]any{"QueueName": name, "Attributes": attributes}, &out)
	if err == nil && out.QueueUrl == "" {
		err = errors.New("there is no URL in the answer")
	}
	if err != nil {
		return "", fmt.Errorf("create queue %s: %w", name, err)
	}
	return out.QueueUrl, nil
}

// Attributes are those of a queue, its counts of messages among them.
func (s *Server) Attributes(ctx context.Context, url string) (map[string]string, error) {
	var out struct{ Attributes map[string]string }
	err := Call(ctx, s.Endpoint, "GetQueueAttributes", map[string]any{"QueueUrl": url, "AttributeNames": []string{"All"}}, &out)
	if err != nil {
		return nil, fmt.Errorf("ask for the attributes of %s: %w", url, err)
	}
	return out.Attributes, nil
}

// Call is one call of an action of SQS at an endpoint, without the SDK, for who may not
// import it. A nil out is for who does not want the answer.
func Call(ctx context.Context, endpoint, action string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Amz-Target", "AmazonSQS."+action)
	req.Header.Set("Content-Type", "application/x-amz-json-1.0")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=test")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if body, err = io.ReadAll(res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, body)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(body, out)
}

// Setenv sets the [Server.Environment] of this process, and of those that it will start.
func (s *Server) Setenv() error {
	for _, pair := range s.Environment() {
		name, value, _ := strings.Cut(pair, "=")
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// Count counts the messages of a queue: those that can be received, those that somebody
// holds and those that are delayed. (Of AWS's own SQS such counts are late and rough.)
func (s *Server) Count(ctx context.Context, url string) (n int, err error) {
	all, err := s.Attributes(ctx, url)
	if err != nil {
		return 0, err
	}
	for _, name := range []string{"ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"} {
		some, err := strconv.Atoi(all[name])
		if err != nil {
			return 0, fmt.Errorf("count the messages of %s: %s: %w", url, name, err)
		}
		n += some
	}
	return n, nil
}
