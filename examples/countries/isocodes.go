package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// isoCodes is a folder like /usr/share, where the package iso-codes keeps its files.
type isoCodes string

// These are the files of ours.
const (
	versionFile   = "pkgconfig/iso-codes.pc"
	countriesFile = "iso-codes/json/iso_3166-1.json"
	frenchFile    = "locale/fr/LC_MESSAGES/iso_3166-1.mo"
)

// findISOCodes looks where the package is installed. ISO_CODES names another folder.
func findISOCodes() (isoCodes, error) {
	for _, dir := range []string{os.Getenv("ISO_CODES"), "/usr/share", "/usr/local/share", "/opt/homebrew/share"} {
		if _, err := os.Stat(filepath.Join(dir, frenchFile)); dir != "" && err == nil {
			return isoCodes(dir), nil
		}
	}
	return "", errors.New("the package iso-codes is not installed: apt-get install iso-codes, or brew install iso-codes")
}

func (d isoCodes) read(file string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), file))
}

// release is the version of the package, and the same as a number that rises with it:
// 4.15.0 is 4,015,000.
func (d isoCodes) release() (version string, number int64, err error) {
	text, err := d.read(versionFile)
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "Version:"); ok {
			version = strings.TrimSpace(v)
		}
	}
	parts := append(strings.Split(version, "."), "0", "0")
	for _, p := range parts[:3] {
		n, err := strconv.ParseInt(p, 10, 32)
		if err != nil || n < 0 || n > 999 {
			return "", 0, fmt.Errorf("%s says version %q", versionFile, version)
		}
		number = 1000*number + n
	}
	return version, number, nil
}

// A country is one, with its name in a language.
type country struct{ Code, Name string }

// countries are those of ISO 3166-1, in French or else in English, in no order.
func (d isoCodes) countries(language string) ([]country, error) {
	text, err := d.read(countriesFile)
	if err != nil {
		return nil, err
	}
	var file struct {
		Countries []struct {
			Code   string `json:"alpha_2"`
			Name   string `json:"name"`
			Common string `json:"common_name"` // Bolivia, where the name is Bolivia, Plurinational State of
		} `json:"3166-1"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", countriesFile, err)
	}
	french := map[string]string{}
	if language == "fr" {
		if text, err = d.read(frenchFile); err == nil {
			french, err = translations(text)
		}
		if err != nil {
			return nil, err
		}
	}
	cs := make([]country, 0, len(file.Countries))
	for _, c := range file.Countries {
		name := c.Name
		if c.Common != "" {
			name = c.Common
		}
		if t := french[name]; t != "" { // what has no translation stays as it is, as gettext has it
			name = t
		}
		cs = append(cs, country{c.Code, name})
	}
	return cs, nil
}

// translations reads a .mo file of GNU gettext: a number that tells the byte order, and two
// tables of lengths and offsets, one of the originals and one of their translations.
func translations(mo []byte) (map[string]string, error) {
	bad := errors.New("this is no .mo file")
	if len(mo) < 20 {
		return nil, bad
	}
	var order binary.ByteOrder = binary.LittleEndian
	if order.Uint32(mo) != 0x950412de {
		order = binary.BigEndian
	}
	if order.Uint32(mo) != 0x950412de {
		return nil, bad
	}
	text := func(table uint32, i int) (string, bool) {
		at := uint64(table) + 8*uint64(i)
		if at+8 > uint64(len(mo)) {
			return "", false
		}
		n, from := uint64(order.Uint32(mo[at:])), uint64(order.Uint32(mo[at+4:]))
		if from+n > uint64(len(mo)) {
			return "", false
		}
		return string(mo[from : from+n]), true
	}
	all := map[string]string{}
	for i := range int(order.Uint32(mo[8:])) {
		original, ok := text(order.Uint32(mo[12:]), i)
		translated, ok2 := text(order.Uint32(mo[16:]), i)
		if !ok || !ok2 {
			return nil, bad
		}
		all[original] = translated
	}
	return all, nil
}
