package control

import "testing"

func TestCutsAreSummedAndTold(t *testing.T) {
	n := cuts{}
	n.add(cuts{"web http": 2})
	n.add(cuts{"web http": 1, "db tcp": 1})
	n.add(nil)
	if n.total() != 4 || n.String() != "db 1 tcp, web 3 http" {
		t.Errorf("%d: %s", n.total(), n)
	}
	if none := cuts(nil).String(); none != "" {
		t.Errorf("nothing is told as %q", none)
	}
}
