// Package regiontest runs writers of the stats region in processes of their own, for tests: only another process can
// die while it holds a sheet.
package regiontest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
)

const variable = "RETINUE_REGIONTEST_WRITER"

// Main is for TestMain: it turns the test binary into a writer when Start has run it as one.
func Main(m *testing.M) {
	if os.Getenv(variable) == "" {
		os.Exit(m.Run())
	}
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Writer is a process that holds sheets and does as it is told. Sheets are numbered from 0 in the order of opening.
type Writer struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	ended bool
}

// Start runs a writer that is killed with the test. The descriptors, which Start takes over, are pairs of a sheet and
// its lock as Store.CreateSheet returns them: the writer's first sheets.
func Start(t testing.TB, fds ...int) *Writer {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &Writer{t: t, cmd: exec.Command(executable)}
	w.cmd.Env = append(os.Environ(), variable+"="+strconv.Itoa(len(fds)/2))
	w.cmd.Stderr = os.Stderr
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "sheet")
		defer f.Close()
		w.cmd.ExtraFiles = append(w.cmd.ExtraFiles, f)
	}
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Kill)
	w.answer("start")
	return w
}

// Open asks statsd for a sheet.
func (w *Writer) Open(socket string, generation uint64, worker uint32) {
	w.t.Helper()
	w.do("open", socket, generation, worker)
}

// Spill begins a spill below the run directory with sheets for the main side and one worker, and declares n groups
// there as Declaration describes them. Its sheets count as the next two.
func (w *Writer) Spill(runDir string, generation uint64, groups int) {
	w.t.Helper()
	w.do("spill", runDir, generation, groups)
}

// Add adds to a cell.
func (w *Writer) Add(sheet int, cell, n uint64) {
	w.t.Helper()
	w.do("add", sheet, cell, n)
}

// Observe counts a value in the histogram at a cell.
func (w *Writer) Observe(sheet int, cell, v uint64) {
	w.t.Helper()
	w.do("observe", sheet, cell, v)
}

// Spin adds 1 to a cell again and again until the process is killed.
func (w *Writer) Spin(sheet int, cell uint64) {
	w.t.Helper()
	w.do("spin", sheet, cell)
}

// CutSheet truncates the file of a sheet to nothing, as only a hostile writer does.
func (w *Writer) CutSheet(fd int) {
	w.t.Helper()
	w.do("cut", fd)
}

// Pid is the process's.
func (w *Writer) Pid() int { return w.cmd.Process.Pid }

// Kill ends the process as kill -9 does, and waits for it.
func (w *Writer) Kill() {
	if !w.ended {
		w.ended = true
		w.cmd.Process.Kill()
		w.cmd.Wait()
	}
}

func (w *Writer) do(command ...any) {
	w.t.Helper()
	line := strings.TrimSuffix(fmt.Sprintln(command...), "\n")
	if _, err := fmt.Fprintln(w.in, line); err != nil {
		w.t.Fatalf("writer: %s: %v", line, err)
	}
	w.answer(line)
}

func (w *Writer) answer(line string) {
	w.t.Helper()
	answer, err := w.out.ReadString('\n')
	if err != nil || answer != "ok\n" {
		w.t.Fatalf("writer: %s: %q %v", line, answer, err)
	}
}

// Declaration is a schema "test" with a counter, a gauge and a histogram, at cells 0, 1 and 2, and n groups of it.
func Declaration(groups int) ([]*statsv1.Schema, []*statsv1.Group) {
	schema := &statsv1.Schema{Name: "test", Fields: []*statsv1.Field{
		{Name: "rq_total", Kind: statsv1.Kind_KIND_COUNTER, Help: "Requests."},
		{Name: "cx_active", Kind: statsv1.Kind_KIND_GAUGE, Help: "Connections."},
		{Name: "rq_time", Kind: statsv1.Kind_KIND_HISTOGRAM, Unit: "us", Help: "Time of a request."},
	}}
	var list []*statsv1.Group
	for i := range groups {
		list = append(list, &statsv1.Group{Labels: []*statsv1.Label{{Name: "group", Value: strconv.Itoa(i)}}})
	}
	return []*statsv1.Schema{schema}, list
}

func serve(in io.Reader, out io.Writer) error {
	var sheets []*region.Sheet
	n, err := strconv.Atoi(os.Getenv(variable))
	if err != nil {
		return err
	}
	for i := range n {
		s, err := region.AttachSheet(3+2*i, 4+2*i)
		if err != nil {
			return err
		}
		sheets = append(sheets, s)
	}
	fmt.Fprintln(out, "ok")
	for lines := bufio.NewScanner(in); lines.Scan(); {
		words := strings.Fields(lines.Text())
		opened, err := obey(sheets, words)
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		sheets = append(sheets, opened...)
		fmt.Fprintln(out, "ok")
	}
	return nil
}

func obey(sheets []*region.Sheet, words []string) ([]*region.Sheet, error) {
	number := func(i int) uint64 {
		n, err := strconv.ParseUint(words[i], 10, 64)
		if err != nil {
			panic(err)
		}
		return n
	}
	switch words[0] {
	case "open":
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s, err := region.OpenSheet(ctx, words[1], number(2), uint32(number(3)))
		return []*region.Sheet{s}, err
	case "spill":
		spill, err := region.NewSpill(words[1], number(2), region.Options{})
		if err != nil {
			return nil, err
		}
		schemas, groups := Declaration(int(number(3)))
		if _, err := spill.Declare(schemas, groups); err != nil {
			return nil, err
		}
		main, err := spill.Sheet(region.MainWorker)
		if err != nil {
			return nil, err
		}
		worker, err := spill.Sheet(0)
		return []*region.Sheet{main, worker}, err
	case "cut":
		return nil, unix.Ftruncate(int(number(1)), 0)
	}
	n := 1
	if words[0] == "observe" {
		n = region.HistogramCells
	}
	cells, err := sheets[number(1)].Cells(number(2), n)
	if err != nil {
		return nil, err
	}
	switch words[0] {
	case "add":
		cells[0] += number(3)
	case "observe":
		region.Observe(cells, number(3))
	case "spin":
		go func() {
			for {
				cells[0]++
			}
		}()
	default:
		return nil, errors.New("unknown")
	}
	return nil, nil
}
