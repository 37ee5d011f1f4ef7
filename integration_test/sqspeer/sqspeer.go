// Package sqspeer runs an SQS server that somebody else wrote, fauxqs, so that what talks
// to SQS is not tested against our own idea of it alone. It comes from npm, pinned by the
// lock file beside this one, and is installed once into a folder of the user's cache.
package sqspeer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

//go:embed package.json package-lock.json .npmrc run.mjs
var files embed.FS

var names = []string{"package.json", "package-lock.json", ".npmrc", "run.mjs"}

// A Peer is a running server.
type Peer struct {
	Endpoint string // as http://127.0.0.1:4566
}

// Start starts a server that ends with the test. Where there is no Node.js the test is
// skipped; TEST_REQUIRE=1 makes that a failure.
func Start(t testing.TB) *Peer {
	t.Helper()
	dir, err := installed()
	if err == nil {
		var p *Peer
		if p, err = start(t, dir); err == nil {
			return p
		}
	}
	if os.Getenv("TEST_REQUIRE") == "1" {
		t.Fatalf("no SQS peer, and TEST_REQUIRE=1: %v", err)
	}
	t.Skipf("no SQS peer: %v", err)
	return nil
}

// installed returns the folder in which the server is.
var installed = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return Install(ctx)
})

// Install installs the server, unless it is there, and returns its folder. Several
// processes may call it at once.
func Install(ctx context.Context) (dir string, err error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("%s is not installed (Debian: apt-get install nodejs npm)", program)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	digest := sha256.New()
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(digest, "%s %d\n%s", name, len(text), text)
	}
	parent := filepath.Join(cache, "oncemore", "sqspeer")
	dir = filepath.Join(parent, fmt.Sprintf("%x", digest.Sum(nil)[:8]))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	done := filepath.Join(dir, "installed")
	if _, err := os.Stat(done); err == nil {
		return dir, nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", err
	}
	for _, name := range names {
		text, _ := files.ReadFile(name)
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return "", err
		}
	}
	npm := exec.CommandContext(ctx, "npm", "ci", "--silent", "--omit=dev", "--ignore-scripts")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci in %s: %w: %s", dir, err, bytes.TrimSpace(out))
	}
	return dir, os.WriteFile(done, nil, 0o644)
}

func start(t testing.TB, dir string) (*Peer, error) {
	node := exec.Command("node", "run.mjs")
	node.Dir = dir
	node.Stderr = t.Output()
	in, err := node.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := node.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := node.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		in.Close()
		late := time.AfterFunc(10*time.Second, func() { _ = node.Process.Kill() })
		defer late.Stop()
		_ = node.Wait()
	})
	late := time.AfterFunc(30*time.Second, func() { _ = node.Process.Kill() })
	defer late.Stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("start fauxqs: %w", err)
	}
	return &Peer{Endpoint: strings.TrimSpace(line)}, nil
}

// CreateQueue makes a queue with such attributes and returns its URL.
func (p *Peer) CreateQueue(t testing.TB, name string, attributes map[string]string) (url string) {
	t.Helper()
	in, err := json.Marshal(map[string]any{"QueueName": name, "Attributes": attributes})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.Endpoint, bytes.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Amz-Target", "AmazonSQS.CreateQueue")
	req.Header.Set("Content-Type", "application/x-amz-json-1.0")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=test")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	var out struct{ QueueUrl string }
	if err == nil && res.StatusCode == http.StatusOK {
		err = json.Unmarshal(body, &out)
	}
	if err != nil || out.QueueUrl == "" {
		t.Fatalf("create queue %s: %s %v: %s", name, res.Status, err, body)
	}
	return out.QueueUrl
}

// Setenv has the AWS SDK of this test, and of its child processes, talk to the peer alone.
func (p *Peer) Setenv(t testing.TB) {
	for _, pair := range p.Environment() {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
}

// Environment is what a process needs to talk to the peer.
func (p *Peer) Environment() []string {
	return []string{"AWS_ENDPOINT_URL_SQS=" + p.Endpoint, "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
		"AWS_SESSION_TOKEN=", "AWS_PROFILE=", "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"}
}
