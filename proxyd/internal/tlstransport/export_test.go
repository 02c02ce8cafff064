package tlstransport

// Most is how many handshakes may be under way, StepsPerTurn how many of their records a turn takes.
func (s *Side) Most() int { return s.most }

// SetMost makes it another number, for a test.
func (s *Side) SetMost(n int) { s.most = n }

const StepsPerTurn = stepsPerTurn
