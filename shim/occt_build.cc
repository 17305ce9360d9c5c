// occt_build.cc: see occt_build.h.
#include "shim/occt_build.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include <BRepAlgoAPI_Common.hxx>
#include <BRepAlgoAPI_Cut.hxx>
#include <BRepAlgoAPI_Fuse.hxx>
#include <BRepBndLib.hxx>
#include <BRepBuilderAPI_MakeEdge.hxx>
#include <BRepBuilderAPI_MakeFace.hxx>
#include <BRepBuilderAPI_MakeWire.hxx>
#include <BRepBuilderAPI_MakePolygon.hxx>
#include <BRepBuilderAPI_MakeSolid.hxx>
#include <BRepBuilderAPI_Sewing.hxx>
#include <BRepBuilderAPI_Transform.hxx>
#include <BRepCheck_Analyzer.hxx>
#include <BRepFilletAPI_MakeChamfer.hxx>
#include <BRepFilletAPI_MakeFillet.hxx>
#include <BRepGProp.hxx>
#include <BRepLib.hxx>
#include <BRepPrimAPI_MakeBox.hxx>
#include <BRepPrimAPI_MakeCone.hxx>
#include <BRepPrimAPI_MakeCylinder.hxx>
#include <BRepPrimAPI_MakePrism.hxx>
#include <BRepPrimAPI_MakeRevol.hxx>
#include <BRepPrimAPI_MakeSphere.hxx>
#include <BRepPrimAPI_MakeTorus.hxx>
#include <BRepTools.hxx>
#include <BRepTools_WireExplorer.hxx>
#include <BRep_Builder.hxx>
#include <BRep_Tool.hxx>
#include <Bnd_Box.hxx>
#include <GC_MakeArcOfCircle.hxx>
#include <GProp_GProps.hxx>
#include <Geom_BSplineCurve.hxx>
#include <Geom_Circle.hxx>
#include <Geom_ConicalSurface.hxx>
#include <Geom_CylindricalSurface.hxx>
#include <Geom_Ellipse.hxx>
#include <Geom_Line.hxx>
#include <Geom_Plane.hxx>
#include <Geom_RectangularTrimmedSurface.hxx>
#include <Geom_SphericalSurface.hxx>
#include <Geom_SurfaceOfRevolution.hxx>
#include <Geom_ToroidalSurface.hxx>
#include <Geom_TrimmedCurve.hxx>
#include <Interface_Static.hxx>
#include <STEPControl_Writer.hxx>
#include <STEPControl_Reader.hxx>
#include <ShapeUpgrade_UnifySameDomain.hxx>
#include <Standard_Failure.hxx>
#include <Standard_Version.hxx>
#include <TColStd_Array1OfInteger.hxx>
#include <TColStd_Array1OfReal.hxx>
#include <TopExp.hxx>
#include <TopExp_Explorer.hxx>
#include <TopTools_DataMapOfShapeInteger.hxx>
#include <TopTools_IndexedDataMapOfShapeListOfShape.hxx>
#include <TopTools_IndexedMapOfShape.hxx>
#include <TopoDS.hxx>
#include <TopoDS_Compound.hxx>
#include <TopoDS_Iterator.hxx>
#include <gp_Ax1.hxx>
#include <gp_Ax2.hxx>
#include <gp_Ax3.hxx>
#include <gp_Trsf.hxx>

#include "shim/occt.h"

struct occ_build {
    std::vector<TopoDS_Shape> shapes;
    std::string error; // of the first failure; "" while all is well
};

namespace {

constexpr double TINY = 1e-7; // OpenCASCADE's own confusion distance, mm

[[noreturn]] void refuse(const char *what)
{
    throw std::runtime_error(what);
}

// The text of whatever was thrown.  Standard_Failure is no std::exception before OpenCASCADE 8,
// and its message may be empty.
std::string thrown_text() noexcept
try {
    try {
        throw;
    } catch (const Standard_Failure &e) {
        const char *m = e.GetMessageString();
        return std::string(e.DynamicType()->Name()) + (m && *m ? std::string(": ") + m : std::string());
    } catch (const std::exception &e) {
        return e.what();
    } catch (...) {
        return "unknown exception";
    }
} catch (...) {
    return {};
}

// Runs f, which makes a shape, unless an earlier call failed.
template <class F>
int make(occ_build *b, const char *what, F f) noexcept
{
    if (!b->error.empty())
        return -1;
    try {
        TopoDS_Shape s = f();
        if (s.IsNull())
            refuse("gives nothing");
        b->shapes.push_back(s);
        return static_cast<int>(b->shapes.size()) - 1;
    } catch (...) {
        std::string text = thrown_text();
        b->error = std::string(what) + ": " + (text.empty() ? "out of memory" : text);
        return -1;
    }
}

const TopoDS_Shape &get(occ_build *b, int i)
{
    if (i < 0 || i >= static_cast<int>(b->shapes.size()))
        refuse("no such shape");
    return b->shapes[static_cast<size_t>(i)];
}

gp_Ax2 axes(const occ_frame &f)
{
    return gp_Ax2(gp_Pnt(f.at[0], f.at[1], f.at[2]), gp_Dir(f.axis[0], f.axis[1], f.axis[2]),
                  gp_Dir(f.x[0], f.x[1], f.x[2]));
}

gp_Pnt in_frame(const gp_Ax2 &a, double x, double y)
{
    return a.Location().Translated(gp_Vec(a.XDirection()) * x + gp_Vec(a.YDirection()) * y);
}

TopoDS_Wire loop_wire(const gp_Ax2 &a, const occ_loop &l)
{
    BRepBuilderAPI_MakeWire wire;
    if (l.n == 0) {
        if (!(l.r > TINY))
            refuse("a circle without a radius");
        gp_Ax2 c(in_frame(a, l.cx, l.cy), a.Direction(), a.XDirection());
        wire.Add(BRepBuilderAPI_MakeEdge(gp_Circ(c, l.r)).Edge());
        return wire.Wire();
    }
    for (int i = 0; i < l.n; i++) {
        const occ_point &p = l.p[i], &q = l.p[(i + 1) % l.n];
        gp_Pnt from = in_frame(a, p.x, p.y), to = in_frame(a, q.x, q.y);
        if (from.Distance(to) < 1e-4)
            refuse("a profile with two equal points");
        if (p.bulge == 0) {
            wire.Add(BRepBuilderAPI_MakeEdge(from, to).Edge());
        } else {
            // The arc's middle lies bulge * half the chord to the right of the chord.
            double mx = (p.x + q.x) / 2 + p.bulge * (q.y - p.y) / 2;
            double my = (p.y + q.y) / 2 - p.bulge * (q.x - p.x) / 2;
            GC_MakeArcOfCircle arc(from, in_frame(a, mx, my), to);
            if (!arc.IsDone())
                refuse("an arc that is none");
            wire.Add(BRepBuilderAPI_MakeEdge(arc.Value()).Edge());
        }
        if (!wire.IsDone())
            refuse("a profile that does not join");
    }
    return wire.Wire();
}

TopoDS_Shape combine(BRepAlgoAPI_BooleanOperation &op)
{
    if (!op.IsDone() || op.HasErrors())
        refuse("failed");
    return op.Shape();
}

struct Chosen {
    occ_edges which;
    double lo, hi; // z range of the shape

    Chosen(const TopoDS_Shape &s, occ_edges w) : which(w), lo(0), hi(0)
    {
        Bnd_Box box;
        BRepBndLib::AddOptimal(s, box, Standard_False, Standard_False);
        double x0, y0, x1, y1;
        box.Get(x0, y0, lo, x1, y1, hi);
    }

    bool operator()(const TopoDS_Edge &e) const
    {
        if (BRep_Tool::Degenerated(e))
            return false;
        double first, last;
        Handle(Geom_Curve) c = BRep_Tool::Curve(e, first, last);
        if (c.IsNull())
            return false;
        gp_Pnt p = c->Value(first), m = c->Value((first + last) / 2), q = c->Value(last);
        auto at = [&](double z) {
            return std::fabs(p.Z() - z) < 1e-5 && std::fabs(m.Z() - z) < 1e-5 && std::fabs(q.Z() - z) < 1e-5;
        };
        switch (which) {
        case OCC_EDGES_ALL:
            return true;
        case OCC_EDGES_VERTICAL:
            return std::hypot(p.X() - q.X(), p.Y() - q.Y()) < 1e-6 && std::hypot(p.X() - m.X(), p.Y() - m.Y()) < 1e-6;
        case OCC_EDGES_TOP:
            return at(hi);
        case OCC_EDGES_BOTTOM:
            return at(lo);
        }
        return false;
    }
};

// ---- Part 21 ----------------------------------------------------------------

class StepText {
  public:
    explicit StepText(int n) : decimals(n) {}

    std::string file(const TopoDS_Solid &solid, const char *name, const char *product_name)
    {
        collect_runs(solid);
        int shell = closed_shell(solid);
        int brep = fresh("MANIFOLD_SOLID_BREP('',#" + num(shell) + ")");
        int origin = fresh("AXIS2_PLACEMENT_3D('',#" + num(point(gp_Pnt(0, 0, 0))) + ",#" + num(direction(gp_Dir(0, 0, 1))) +
                           ",#" + num(direction(gp_Dir(1, 0, 0))) + ")");
        int mm = fresh("(LENGTH_UNIT()NAMED_UNIT(*)SI_UNIT(.MILLI.,.METRE.))");
        int rad = fresh("(NAMED_UNIT(*)PLANE_ANGLE_UNIT()SI_UNIT($,.RADIAN.))");
        int sr = fresh("(NAMED_UNIT(*)SI_UNIT($,.STERADIAN.)SOLID_ANGLE_UNIT())");
        int accuracy = fresh("UNCERTAINTY_MEASURE_WITH_UNIT(LENGTH_MEASURE(1.E-05),#" + num(mm) +
                             ",'distance_accuracy_value','')");
        int context = fresh("(GEOMETRIC_REPRESENTATION_CONTEXT(3)GLOBAL_UNCERTAINTY_ASSIGNED_CONTEXT((#" + num(accuracy) +
                            "))GLOBAL_UNIT_ASSIGNED_CONTEXT((#" + num(mm) + ",#" + num(rad) + ",#" + num(sr) +
                            "))REPRESENTATION_CONTEXT('',''))");
        int shape = fresh("ADVANCED_BREP_SHAPE_REPRESENTATION('',(#" + num(brep) + ",#" + num(origin) + "),#" +
                          num(context) + ")");
        int app = fresh("APPLICATION_CONTEXT('automotive design')");
        fresh("APPLICATION_PROTOCOL_DEFINITION('international standard','automotive_design',2000,#" + num(app) + ")");
        int pc = fresh("PRODUCT_CONTEXT('',#" + num(app) + ",'mechanical')");
        int product = fresh("PRODUCT('" + quoted(product_name) + "','" + quoted(product_name) + "','',(#" + num(pc) + "))");
        int formation = fresh("PRODUCT_DEFINITION_FORMATION('','',#" + num(product) + ")");
        int pdc = fresh("PRODUCT_DEFINITION_CONTEXT('part definition',#" + num(app) + ",'design')");
        int definition = fresh("PRODUCT_DEFINITION('design','',#" + num(formation) + ",#" + num(pdc) + ")");
        int pds = fresh("PRODUCT_DEFINITION_SHAPE('','',#" + num(definition) + ")");
        fresh("SHAPE_DEFINITION_REPRESENTATION(#" + num(pds) + ",#" + num(shape) + ")");
        return header(name) + "DATA;\n" + text + "ENDSEC;\nEND-ISO-10303-21;\n";
    }

    static std::string header(const char *name)
    {
        return "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION((''),'2;1');\nFILE_NAME('" + quoted(name) +
               "','1970-01-01T00:00:00',(''),(''),'OpenCASCADE " OCC_VERSION_STRING "','synth','');\n"
               "FILE_SCHEMA(('AUTOMOTIVE_DESIGN { 1 0 10303 214 1 1 1 1 }'));\nENDSEC;\n";
    }

  private:
    const int decimals;
    int last = 0;
    std::string text;
    std::unordered_map<std::string, int> known; // bodies that are written once
    TopTools_IndexedMapOfShape edge_of, vertex_of;
    std::vector<int> edge_id, vertex_id;
    std::vector<gp_Vec> run;

    static std::string num(int v) { return std::to_string(v); }

    static std::string quoted(const char *s)
    {
        std::string r;
        for (; *s; s++) {
            unsigned char c = static_cast<unsigned char>(*s);
            r += c < 32 || c > 126 || c == '\\' ? '_' : *s;
            if (*s == '\'')
                r += '\'';
        }
        return r;
    }

    int fresh(const std::string &body)
    {
        text += "#" + num(++last) + "=" + body + ";\n";
        return last;
    }

    int shared(const std::string &body)
    {
        auto [at, added] = known.try_emplace(body, 0);
        if (added)
            at->second = fresh(body);
        return at->second;
    }

    // "2.5", "10.", "-0.866025": at most `places` decimals, no zeros behind, never "-0.".
    static std::string real(double v, int places)
    {
        if (!std::isfinite(v))
            refuse("a number that is not finite");
        char s[400];
        int n = snprintf(s, sizeof s, "%.*f", places, v);
        while (n > 0 && s[n - 1] == '0')
            s[--n] = 0;
        return strcmp(s, "-0.") == 0 ? "0." : s;
    }
    std::string real(double v) const { return real(v, decimals); }
    // Cosines act over the whole part, so they keep two decimals more than lengths.
    std::string triple(double x, double y, double z, int extra) const
    {
        return "(" + real(x, decimals + extra) + "," + real(y, decimals + extra) + "," + real(z, decimals + extra) + ")";
    }

    int point(const gp_Pnt &p) { return shared("CARTESIAN_POINT(''," + triple(p.X(), p.Y(), p.Z(), 0) + ")"); }
    // STEP's directions have no length: (65.,0.,-25.) is exact and easily told from the points, its cosines are not.
    // A direction that is that of a straight edge, or square to one seen along an axis, gets its numbers where
    // they are multiples of a quarter; the longest such vector counts, so that parallel directions share an entity.
    int direction(const gp_Dir &d)
    {
        double v[3] = {d.X(), d.Y(), d.Z()}, least = 2, most = 0;
        int n = 0;
        for (double x : v)
            if (std::fabs(x) > 1e-9) {
                least = std::fmin(least, std::fabs(x));
                most = std::fmax(most, std::fabs(x));
                n++;
            }
        if (n > 1 && most - least < 1e-8) {
            for (double &x : v)
                x = x > 1e-9 ? 1 : x < -1e-9 ? -1 : 0;
        } else if (n > 1) {
            double longest = 0;
            for (const gp_Vec &c : run)
                if (double m = c.Magnitude(); m > longest + 1e-6 && c.Crossed(gp_Vec(d)).Magnitude() < 1e-7 * m) {
                    double sign = c.Dot(gp_Vec(d)) < 0 ? -1 : 1;
                    v[0] = sign * c.X(), v[1] = sign * c.Y(), v[2] = sign * c.Z();
                    longest = m;
                }
        }
        return shared("DIRECTION(''," + triple(v[0], v[1], v[2], 2) + ")");
    }

    // What straight edges offer to direction().
    void collect_runs(const TopoDS_Solid &solid)
    {
        TopTools_IndexedMapOfShape edges;
        TopExp::MapShapes(solid, TopAbs_EDGE, edges);
        auto offer = [&](double x, double y, double z) {
            int n = 0;
            for (double v : {x, y, z}) {
                if (std::fabs(v * 4 - std::round(v * 4)) > 1e-6)
                    return;
                n += std::fabs(v) > 1e-6;
            }
            if (n > 1)
                run.emplace_back(std::round(x * 4) / 4, std::round(y * 4) / 4, std::round(z * 4) / 4);
        };
        for (int i = 1; i <= edges.Extent(); i++) {
            const TopoDS_Edge &e = TopoDS::Edge(edges(i));
            double from, to;
            if (BRep_Tool::Degenerated(e) || Handle(Geom_Line)::DownCast(BRep_Tool::Curve(e, from, to)).IsNull())
                continue;
            gp_Vec d(BRep_Tool::Pnt(TopExp::FirstVertex(e)), BRep_Tool::Pnt(TopExp::LastVertex(e)));
            offer(d.X(), d.Y(), d.Z());
            offer(d.Y(), -d.X(), 0);
            offer(d.Z(), 0, -d.X());
            offer(0, d.Z(), -d.Y());
        }
    }
    int placement(const gp_Pnt &at, const gp_Dir &z, const gp_Dir &x)
    {
        return shared("AXIS2_PLACEMENT_3D('',#" + num(point(at)) + ",#" + num(direction(z)) + ",#" + num(direction(x)) + ")");
    }
    int placement(const gp_Ax2 &a) { return placement(a.Location(), a.Direction(), a.XDirection()); }
    int placement(const gp_Ax3 &a) { return placement(a.Location(), a.Direction(), a.XDirection()); }

    int vertex(const TopoDS_Vertex &v)
    {
        int i = vertex_of.Add(v);
        if (static_cast<size_t>(i) > vertex_id.size())
            vertex_id.push_back(fresh("VERTEX_POINT('',#" + num(point(BRep_Tool::Pnt(v))) + ")"));
        return vertex_id[static_cast<size_t>(i) - 1];
    }

    int bspline(const Handle(Geom_BSplineCurve) & c)
    {
        std::string poles, mults, knots, weights;
        for (int i = 1; i <= c->NbPoles(); i++) {
            poles += (i > 1 ? ",#" : "#") + num(point(c->Pole(i)));
            weights += (i > 1 ? "," : "") + real(c->Weight(i), decimals + 2);
        }
        for (int i = 1; i <= c->NbKnots(); i++) {
            mults += (i > 1 ? "," : "") + num(c->Multiplicity(i));
            knots += (i > 1 ? "," : "") + real(c->Knot(i), decimals + 2);
        }
        std::string closed = c->IsClosed() ? ".T." : ".F.";
        if (!c->IsRational())
            return fresh("B_SPLINE_CURVE_WITH_KNOTS(''," + num(c->Degree()) + ",(" + poles + "),.UNSPECIFIED.," + closed +
                         ",.F.,(" + mults + "),(" + knots + "),.UNSPECIFIED.)");
        return fresh("(BOUNDED_CURVE()B_SPLINE_CURVE(" + num(c->Degree()) + ",(" + poles + "),.UNSPECIFIED.," + closed +
                     ",.F.)B_SPLINE_CURVE_WITH_KNOTS((" + mults + "),(" + knots +
                     "),.UNSPECIFIED.)CURVE()GEOMETRIC_REPRESENTATION_ITEM()RATIONAL_B_SPLINE_CURVE((" + weights +
                     "))REPRESENTATION_ITEM(''))");
    }

    int curve(const TopoDS_Edge &e)
    {
        double first, end;
        Handle(Geom_Curve) c = BRep_Tool::Curve(e, first, end);
        if (c.IsNull())
            refuse("an edge without a curve");
        while (c->IsKind(STANDARD_TYPE(Geom_TrimmedCurve)))
            c = Handle(Geom_TrimmedCurve)::DownCast(c)->BasisCurve();
        if (auto l = Handle(Geom_Line)::DownCast(c); !l.IsNull()) {
            // Starts at the edge's first vertex, whose point is there already.
            gp_Pnt p = BRep_Tool::Pnt(TopExp::FirstVertex(e));
            int vector = shared("VECTOR('',#" + num(direction(l->Lin().Direction())) + ",1.)");
            return fresh("LINE('',#" + num(point(p)) + ",#" + num(vector) + ")");
        }
        if (auto k = Handle(Geom_Circle)::DownCast(c); !k.IsNull())
            return fresh("CIRCLE('',#" + num(placement(k->Position())) + "," + real(k->Radius()) + ")");
        if (auto k = Handle(Geom_Ellipse)::DownCast(c); !k.IsNull())
            return fresh("ELLIPSE('',#" + num(placement(k->Position())) + "," + real(k->MajorRadius()) + "," +
                         real(k->MinorRadius()) + ")");
        if (auto k = Handle(Geom_BSplineCurve)::DownCast(c); !k.IsNull()) {
            if (k->IsPeriodic()) {
                k = Handle(Geom_BSplineCurve)::DownCast(k->Copy());
                k->SetNotPeriodic();
            }
            return bspline(k);
        }
        throw std::runtime_error(std::string("a curve of type ") + c->DynamicType()->Name());
    }

    int edge_curve(TopoDS_Edge e)
    {
        e.Orientation(TopAbs_FORWARD);
        int i = edge_of.Add(e);
        if (static_cast<size_t>(i) > edge_id.size()) {
            TopoDS_Vertex v0, v1;
            TopExp::Vertices(e, v0, v1);
            if (v0.IsNull() || v1.IsNull())
                refuse("an edge without ends");
            int from = vertex(v0), to = vertex(v1), c = curve(e);
            edge_id.push_back(fresh("EDGE_CURVE('',#" + num(from) + ",#" + num(to) + ",#" + num(c) + ",.T.)"));
        }
        return edge_id[static_cast<size_t>(i) - 1];
    }

    // The wire's edges in order, counter-clockwise about the face's outward normal.
    int loop(const TopoDS_Wire &w, const TopoDS_Face &forward_face, bool face_reversed)
    {
        std::vector<TopoDS_Edge> edges;
        TopoDS_Wire fw = TopoDS::Wire(w.Oriented(TopAbs_FORWARD));
        for (BRepTools_WireExplorer ex(fw, forward_face); ex.More(); ex.Next())
            edges.push_back(ex.Current());
        size_t all = 0;
        for (TopoDS_Iterator it(fw); it.More(); it.Next())
            all++;
        if (edges.size() != all)
            refuse("a wire that cannot be walked");
        if ((w.Orientation() == TopAbs_REVERSED) != face_reversed) {
            std::reverse(edges.begin(), edges.end());
            for (TopoDS_Edge &e : edges)
                e.Reverse();
        }
        std::string list;
        for (const TopoDS_Edge &e : edges)
            if (!BRep_Tool::Degenerated(e)) {
                int curve_id = edge_curve(e);
                int id = fresh("ORIENTED_EDGE('',*,*,#" + num(curve_id) +
                               (e.Orientation() == TopAbs_REVERSED ? ",.F.)" : ",.T.)"));
                list += (list.empty() ? "#" : ",#") + num(id);
            }
        if (list.empty())
            refuse("a loop without edges");
        return fresh("EDGE_LOOP('',(" + list + "))");
    }

    // OpenCASCADE leaves a circle that is concave seen from its axis a surface of revolution; it is a torus.
    int turned_circle(const TopoDS_Face &face, const Handle(Geom_SurfaceOfRevolution) & s, bool *sense)
    {
        Handle(Geom_Curve) c = s->BasisCurve();
        while (c->IsKind(STANDARD_TYPE(Geom_TrimmedCurve)))
            c = Handle(Geom_TrimmedCurve)::DownCast(c)->BasisCurve();
        auto k = Handle(Geom_Circle)::DownCast(c);
        gp_Ax1 axis = s->Axis();
        if (k.IsNull() || std::fabs(k->Position().Direction().Dot(axis.Direction())) > 1e-9)
            refuse("a surface of revolution that is no torus");
        gp_Vec to(axis.Location(), k->Location());
        double along = to.Dot(gp_Vec(axis.Direction()));
        gp_Pnt centre = axis.Location().Translated(gp_Vec(axis.Direction()) * along);
        gp_Vec out(centre, k->Location());
        if (out.Magnitude() <= k->Radius() || std::fabs(gp_Vec(k->Position().Direction()).Dot(out)) > 1e-7)
            refuse("a surface of revolution that is no torus");
        double u0, u1, v0, v1;
        BRepTools::UVBounds(face, u0, u1, v0, v1);
        gp_Pnt p;
        gp_Vec du, dv;
        s->D1((u0 + u1) / 2, (v0 + v1) / 2, p, du, dv);
        // STEP's normal points away from the ring's middle line.
        gp_Vec radial(centre, p);
        radial -= gp_Vec(axis.Direction()) * radial.Dot(gp_Vec(axis.Direction()));
        gp_Pnt middle = centre.Translated(radial.Normalized() * out.Magnitude());
        if (du.Crossed(dv).Dot(gp_Vec(middle, p)) < 0)
            *sense = !*sense;
        return fresh("TOROIDAL_SURFACE('',#" + num(placement(centre, axis.Direction(), gp_Dir(out))) + "," +
                     real(out.Magnitude()) + "," + real(k->Radius()) + ")");
    }

    // sense: in, of the face on OpenCASCADE's surface; out, on the STEP surface.
    int surface(const TopoDS_Face &face, bool *sense)
    {
        Handle(Geom_Surface) s = BRep_Tool::Surface(face);
        while (s->IsKind(STANDARD_TYPE(Geom_RectangularTrimmedSurface)))
            s = Handle(Geom_RectangularTrimmedSurface)::DownCast(s)->BasisSurface();
        if (auto t = Handle(Geom_SurfaceOfRevolution)::DownCast(s); !t.IsNull())
            return turned_circle(face, t, sense);
        auto e = Handle(Geom_ElementarySurface)::DownCast(s);
        if (e.IsNull())
            throw std::runtime_error(std::string("a surface of type ") + s->DynamicType()->Name());
        gp_Ax3 a = e->Position();
        if (!a.Direct()) // left-handed placements turn the normal round; STEP has none
            *sense = !*sense;
        if (!Handle(Geom_Plane)::DownCast(s).IsNull()) {
            // A plane's normal shall be the face's own, its place a corner of the face, its x axis
            // along an axis of the part where it can be: entities that are there already.
            gp_Dir z = *sense ? a.Direction() : a.Direction().Reversed();
            *sense = true;
            gp_Dir x = std::fabs(z.X()) < 1e-9 ? gp_Dir(1, 0, 0) : std::fabs(z.Y()) < 1e-9 ? gp_Dir(0, 1, 0) :
                std::fabs(z.Z()) < 1e-9 ? gp_Dir(0, 0, 1) : a.XDirection();
            gp_Pnt at = a.Location();
            for (TopExp_Explorer v(face, TopAbs_VERTEX); v.More(); v.Next()) {
                at = BRep_Tool::Pnt(TopoDS::Vertex(v.Current()));
                break;
            }
            return fresh("PLANE('',#" + num(placement(at, z, x)) + ")");
        }
        if (auto c = Handle(Geom_CylindricalSurface)::DownCast(s); !c.IsNull())
            return fresh("CYLINDRICAL_SURFACE('',#" + num(placement(a)) + "," + real(c->Radius()) + ")");
        if (auto c = Handle(Geom_ConicalSurface)::DownCast(s); !c.IsNull()) {
            // STEP wants a half angle above 0: one that opens the other way has its axis turned.
            double half = c->SemiAngle();
            gp_Dir z = a.Direction();
            if (half < 0) {
                half = -half;
                z.Reverse();
            }
            return fresh("CONICAL_SURFACE('',#" + num(placement(a.Location(), z, a.XDirection())) + "," +
                         real(c->RefRadius()) + "," + real(half, decimals + 2) + ")");
        }
        if (auto c = Handle(Geom_SphericalSurface)::DownCast(s); !c.IsNull())
            return fresh("SPHERICAL_SURFACE('',#" + num(placement(a)) + "," + real(c->Radius()) + ")");
        auto c = Handle(Geom_ToroidalSurface)::DownCast(s);
        if (c.IsNull())
            throw std::runtime_error(std::string("a surface of type ") + s->DynamicType()->Name());
        return fresh("TOROIDAL_SURFACE('',#" + num(placement(a)) + "," + real(c->MajorRadius()) + "," +
                     real(c->MinorRadius()) + ")");
    }

    int face(const TopoDS_Face &f)
    {
        bool reversed = f.Orientation() == TopAbs_REVERSED;
        TopoDS_Face forward = TopoDS::Face(f.Oriented(TopAbs_FORWARD));
        TopoDS_Wire outer = BRepTools::OuterWire(forward);
        std::string bounds;
        for (TopoDS_Iterator it(forward); it.More(); it.Next()) {
            if (it.Value().ShapeType() != TopAbs_WIRE)
                continue;
            TopoDS_Wire w = TopoDS::Wire(it.Value());
            int l = loop(w, forward, reversed);
            int bound = fresh((w.IsSame(outer) ? "FACE_OUTER_BOUND('',#" : "FACE_BOUND('',#") + num(l) + ",.T.)");
            bounds += (bounds.empty() ? "#" : ",#") + num(bound);
        }
        if (bounds.empty())
            refuse("a face without bounds");
        bool sense = !reversed;
        int s = surface(forward, &sense);
        return fresh("ADVANCED_FACE('',(" + bounds + "),#" + num(s) + (sense ? ",.T.)" : ",.F.)"));
    }

    int closed_shell(const TopoDS_Solid &solid)
    {
        TopExp_Explorer ex(solid, TopAbs_SHELL);
        if (!ex.More())
            refuse("a solid without a shell");
        TopoDS_Shell shell = TopoDS::Shell(ex.Current());
        ex.Next();
        if (ex.More())
            refuse("a solid with a closed hollow");
        std::string list;
        for (TopExp_Explorer f(shell, TopAbs_FACE); f.More(); f.Next())
            list += (list.empty() ? "#" : ",#") + num(face(TopoDS::Face(f.Current())));
        return fresh("CLOSED_SHELL('',(" + list + "))");
    }
};

TopoDS_Solid only_solid(const TopoDS_Shape &s)
{
    TopExp_Explorer ex(s, TopAbs_SOLID);
    if (!ex.More())
        refuse("no solid");
    TopoDS_Solid solid = TopoDS::Solid(ex.Current());
    ex.Next();
    if (ex.More())
        refuse("more than one solid");
    return solid;
}

TopoDS_Shape moved(const TopoDS_Shape &s, const gp_Trsf &t)
{
    return BRepBuilderAPI_Transform(s, t, Standard_True).Shape();
}

} // namespace

extern "C" {

struct occ_build *occ_build_new(void)
{
    occ_quiet();
    return new (std::nothrow) occ_build;
}

void occ_build_free(struct occ_build *b)
{
    delete b;
}

void occ_build_clear(struct occ_build *b)
{
    b->shapes.clear();
    b->error.clear();
}

int occ_box(struct occ_build *b, double cx, double cy, double cz, double dx, double dy, double dz)
{
    return make(b, "box", [&]() -> TopoDS_Shape {
        return BRepPrimAPI_MakeBox(gp_Pnt(cx - dx / 2, cy - dy / 2, cz - dz / 2), dx, dy, dz).Shape();
    });
}

int occ_cylinder(struct occ_build *b, struct occ_frame f, double r, double height)
{
    return make(b, "cylinder", [&]() -> TopoDS_Shape { return BRepPrimAPI_MakeCylinder(axes(f), r, height).Shape(); });
}

int occ_cone(struct occ_build *b, struct occ_frame f, double r_bottom, double r_top, double height)
{
    return make(b, "cone",
                [&]() -> TopoDS_Shape { return BRepPrimAPI_MakeCone(axes(f), r_bottom, r_top, height).Shape(); });
}

int occ_sphere(struct occ_build *b, double cx, double cy, double cz, double r)
{
    return make(b, "sphere", [&]() -> TopoDS_Shape { return BRepPrimAPI_MakeSphere(gp_Pnt(cx, cy, cz), r).Shape(); });
}

int occ_torus(struct occ_build *b, struct occ_frame f, double r_ring, double r_tube)
{
    return make(b, "torus", [&]() -> TopoDS_Shape {
        if (!(r_tube < r_ring))
            refuse("a tube as thick as its ring");
        return BRepPrimAPI_MakeTorus(axes(f), r_ring, r_tube).Shape();
    });
}

int occ_extrude(struct occ_build *b, struct occ_frame f, const struct occ_loop *loops, int n_loops, double height)
{
    return make(b, "extrusion", [&]() -> TopoDS_Shape {
        gp_Ax2 a = axes(f);
        BRepBuilderAPI_MakeFace face(gp_Pln(gp_Ax3(a)), loop_wire(a, loops[0]), Standard_True);
        for (int i = 1; i < n_loops; i++) {
            // A hole's wire must run the other way round than the outline, which the face tells.
            TopoDS_Wire hole = loop_wire(a, loops[i]);
            BRepBuilderAPI_MakeFace lone(gp_Pln(gp_Ax3(a)), hole, Standard_True);
            TopoDS_Wire outline = BRepTools::OuterWire(TopoDS::Face(lone.Face().Oriented(TopAbs_FORWARD)));
            face.Add(TopoDS::Wire(outline.Reversed()));
        }
        if (!face.IsDone())
            refuse("a profile that bounds nothing");
        return BRepPrimAPI_MakePrism(face.Face(), gp_Vec(a.Direction()) * height).Shape();
    });
}

int occ_revolve(struct occ_build *b, const struct occ_point *p, int n, double degrees)
{
    return make(b, "revolution", [&]() -> TopoDS_Shape {
        gp_Ax2 a(gp_Pnt(0, 0, 0), gp_Dir(0, -1, 0), gp_Dir(1, 0, 0)); // profile y is z
        occ_loop l = {p, n, 0, 0, 0};
        BRepBuilderAPI_MakeFace face(gp_Pln(gp_Ax3(a)), loop_wire(a, l), Standard_True);
        if (!face.IsDone())
            refuse("a profile that bounds nothing");
        gp_Ax1 axis(gp_Pnt(0, 0, 0), gp_Dir(0, 0, 1));
        if (degrees >= 360)
            return BRepPrimAPI_MakeRevol(face.Face(), axis, Standard_True).Shape();
        return BRepPrimAPI_MakeRevol(face.Face(), axis, degrees * M_PI / 180, Standard_True).Shape();
    });
}

int occ_loft(struct occ_build *b, const struct occ_point *bottom, double z0, const struct occ_point *top, double z1, int n)
{
    return make(b, "loft", [&]() -> TopoDS_Shape {
        // Built from planar faces: OpenCASCADE's own lofts make splines.
        BRepBuilderAPI_Sewing sewing(1e-5);
        auto add = [&](const std::vector<gp_Pnt> &v) {
            BRepBuilderAPI_MakePolygon w;
            for (size_t i = 0; i < v.size(); i++)
                if (i == 0 || v[i].Distance(v[i - 1]) > TINY)
                    w.Add(v[i]);
            w.Close();
            BRepBuilderAPI_MakeFace face(w.Wire(), Standard_True);
            if (!face.IsDone())
                refuse("a side that is not plane");
            sewing.Add(face.Face());
        };
        std::vector<gp_Pnt> lo, hi;
        for (int i = 0; i < n; i++) {
            lo.emplace_back(bottom[i].x, bottom[i].y, z0);
            hi.emplace_back(top[i].x, top[i].y, z1);
        }
        add(lo);
        if (hi[0].Distance(hi[1]) > TINY)
            add(hi);
        for (size_t i = 0, k = 1; i < lo.size(); i++, k = (i + 1) % lo.size())
            add({lo[i], lo[k], hi[k], hi[i]});
        sewing.Perform();
        TopExp_Explorer shell(sewing.SewedShape(), TopAbs_SHELL);
        if (!shell.More())
            refuse("sides that do not join");
        TopoDS_Solid solid = BRepBuilderAPI_MakeSolid(TopoDS::Shell(shell.Current())).Solid();
        BRepLib::OrientClosedSolid(solid);
        return solid;
    });
}

int occ_fuse(struct occ_build *b, int a, int c)
{
    return make(b, "fuse", [&]() -> TopoDS_Shape {
        BRepAlgoAPI_Fuse op(get(b, a), get(b, c));
        return combine(op);
    });
}

int occ_cut(struct occ_build *b, int a, int c)
{
    return make(b, "cut", [&]() -> TopoDS_Shape {
        BRepAlgoAPI_Cut op(get(b, a), get(b, c));
        return combine(op);
    });
}

int occ_common(struct occ_build *b, int a, int c)
{
    return make(b, "common", [&]() -> TopoDS_Shape {
        BRepAlgoAPI_Common op(get(b, a), get(b, c));
        return combine(op);
    });
}

int occ_move(struct occ_build *b, int a, double dx, double dy, double dz)
{
    return make(b, "move", [&]() -> TopoDS_Shape {
        gp_Trsf t;
        t.SetTranslation(gp_Vec(dx, dy, dz));
        return moved(get(b, a), t);
    });
}

int occ_rotate(struct occ_build *b, int a, struct occ_frame about, double degrees)
{
    return make(b, "rotate", [&]() -> TopoDS_Shape {
        gp_Trsf t;
        t.SetRotation(axes(about).Axis(), degrees * M_PI / 180);
        return moved(get(b, a), t);
    });
}

int occ_scale(struct occ_build *b, int a, double factor)
{
    return make(b, "scale", [&]() -> TopoDS_Shape {
        gp_Trsf t;
        t.SetScale(gp_Pnt(0, 0, 0), factor);
        return BRepBuilderAPI_Transform(get(b, a), t, Standard_True).Shape();
    });
}

int occ_read(struct occ_build *b, const char *text, size_t n)
{
    return make(b, "read", [&]() -> TopoDS_Shape {
        occ_quiet();
        STEPControl_Reader reader;
        std::istringstream stream(std::string(text, n));
        if (reader.ReadStream("part", stream) != IFSelect_RetDone)
            refuse("is no STEP file");
        reader.TransferRoots();
        return reader.OneShape();
    });
}

int occ_polar(struct occ_build *b, int a, struct occ_frame about, int n)
{
    return make(b, "polar pattern", [&]() -> TopoDS_Shape {
        BRep_Builder builder;
        TopoDS_Compound all;
        builder.MakeCompound(all);
        for (int i = 0; i < n; i++) {
            gp_Trsf t;
            t.SetRotation(axes(about).Axis(), 2 * M_PI * i / n);
            builder.Add(all, moved(get(b, a), t));
        }
        return all;
    });
}

int occ_grid(struct occ_build *b, int a, int nx, double dx, int ny, double dy)
{
    return make(b, "grid pattern", [&]() -> TopoDS_Shape {
        BRep_Builder builder;
        TopoDS_Compound all;
        builder.MakeCompound(all);
        for (int i = 0; i < nx; i++)
            for (int j = 0; j < ny; j++) {
                gp_Trsf t;
                t.SetTranslation(gp_Vec((i - (nx - 1) / 2.0) * dx, (j - (ny - 1) / 2.0) * dy, 0));
                builder.Add(all, moved(get(b, a), t));
            }
        return all;
    });
}

int occ_fillet(struct occ_build *b, int a, enum occ_edges which, double radius)
{
    return make(b, "fillet", [&]() -> TopoDS_Shape {
        TopoDS_Solid s = only_solid(get(b, a));
        Chosen chosen(s, which);
        BRepFilletAPI_MakeFillet op(s);
        TopTools_IndexedMapOfShape edges;
        TopExp::MapShapes(s, TopAbs_EDGE, edges);
        for (int i = 1; i <= edges.Extent(); i++)
            if (chosen(TopoDS::Edge(edges(i))))
                op.Add(radius, TopoDS::Edge(edges(i)));
        if (op.NbContours() == 0)
            refuse("no such edge");
        op.Build();
        if (!op.IsDone())
            refuse("the radius does not fit");
        return op.Shape();
    });
}

int occ_chamfer(struct occ_build *b, int a, enum occ_edges which, double distance)
{
    return make(b, "chamfer", [&]() -> TopoDS_Shape {
        TopoDS_Solid s = only_solid(get(b, a));
        Chosen chosen(s, which);
        BRepFilletAPI_MakeChamfer op(s);
        TopTools_IndexedMapOfShape edges;
        TopExp::MapShapes(s, TopAbs_EDGE, edges);
        for (int i = 1; i <= edges.Extent(); i++)
            if (chosen(TopoDS::Edge(edges(i))))
                op.Add(distance, TopoDS::Edge(edges(i)));
        if (op.NbContours() == 0)
            refuse("no such edge");
        op.Build();
        if (!op.IsDone())
            refuse("the distance does not fit");
        return op.Shape();
    });
}

int occ_finish(struct occ_build *b, int *shape, struct occ_part_info *info)
{
    int done = make(b, "part", [&]() -> TopoDS_Shape {
        ShapeUpgrade_UnifySameDomain unify(get(b, *shape), Standard_True, Standard_True, Standard_False);
        unify.Build();
        TopoDS_Solid s = only_solid(unify.Shape());
        if (!BRepCheck_Analyzer(s).IsValid())
            refuse("not valid");
        TopTools_IndexedDataMapOfShapeListOfShape faces_of;
        TopExp::MapShapesAndUniqueAncestors(s, TopAbs_EDGE, TopAbs_FACE, faces_of);
        for (int i = 1; i <= faces_of.Extent(); i++) {
            const TopoDS_Edge &e = TopoDS::Edge(faces_of.FindKey(i));
            bool seam = faces_of(i).Extent() == 1 && BRep_Tool::IsClosed(e, TopoDS::Face(faces_of(i).First()));
            if (!BRep_Tool::Degenerated(e) && faces_of(i).Extent() != 2 && !seam)
                refuse(faces_of(i).Extent() < 2 ? "not closed" : "an edge of more than two faces");
        }
        GProp_GProps volume, area;
        BRepGProp::VolumeProperties(s, volume);
        BRepGProp::SurfaceProperties(s, area);
        if (!(volume.Mass() > 1e-3))
            refuse("no volume");
        Bnd_Box box;
        BRepBndLib::AddOptimal(s, box, Standard_False, Standard_False); // exact for arcs and turned surfaces
        TopTools_IndexedMapOfShape f, e, v;
        TopExp::MapShapes(s, TopAbs_FACE, f);
        TopExp::MapShapes(s, TopAbs_EDGE, e);
        TopExp::MapShapes(s, TopAbs_VERTEX, v);
        info->volume_mm3 = volume.Mass();
        info->area_mm2 = area.Mass();
        box.Get(info->min[0], info->min[1], info->min[2], info->max[0], info->max[1], info->max[2]);
        info->faces = f.Extent();
        info->edges = e.Extent();
        info->vertices = v.Extent();
        return s;
    });
    if (done < 0)
        return err_set(ERR_EXTERN, "%s", b->error.c_str());
    *shape = done;
    return ERR_OK;
}

// A copy for the C side, which frees it.
static int give_text(const std::string &s, char **text, size_t *n)
{
    *text = static_cast<char *>(malloc(s.size() + 1));
    if (!*text)
        return err_set(ERR_NOMEM, "out of memory");
    memcpy(*text, s.c_str(), s.size() + 1);
    *n = s.size();
    return ERR_OK;
}

int occ_step_text(struct occ_build *b, int shape, const char *name, const char *product, int decimals, char **text, size_t *n)
{
    if (!b->error.empty())
        return err_set(ERR_EXTERN, "%s", b->error.c_str());
    try {
        return give_text(StepText(decimals).file(only_solid(get(b, shape)), name, product), text, n);
    } catch (...) {
        return err_set(ERR_EXTERN, "STEP: %s", thrown_text().c_str());
    }
}

// 7.6 writes only to named files.
static std::string written(const TopoDS_Shape &solid, const char *product)
{
    char path[] = "/tmp/synth-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        refuse("no temporary file in /tmp");
    std::string all;
    STEPControl_Writer writer;
    Interface_Static::SetCVal("write.step.schema", "AP214IS");
    Interface_Static::SetIVal("write.surfacecurve.mode", 0);
    Interface_Static::SetCVal("write.step.product.name", product);
    Interface_Static::SetCVal("write.step.unit", "MM");
    bool good = writer.Transfer(solid, STEPControl_ManifoldSolidBrep) == IFSelect_RetDone && writer.Write(path) == IFSelect_RetDone;
    char chunk[65536];
    for (ssize_t k; good && (k = read(fd, chunk, sizeof chunk)) > 0;)
        all.append(chunk, static_cast<size_t>(k));
    close(fd);
    unlink(path);
    size_t data = all.find("\nDATA;");
    if (!good || data == std::string::npos)
        refuse("STEPControl_Writer failed");
    all.erase(0, data + 1);
    // It counts the products of a process: 'plate 7'.
    const std::string counted = std::string("'") + product + " ";
    size_t at = all.find("=PRODUCT(");
    for (at = at == std::string::npos ? all.find("= PRODUCT(") : at; (at = all.find(counted, at)) != std::string::npos;) {
        at += counted.size() - 1;
        all.erase(at, all.find('\'', at) - at);
    }
    return all;
}

int occ_step_text_native(struct occ_build *b, int shape, const char *name, const char *product, char **text, size_t *n)
{
    if (!b->error.empty())
        return err_set(ERR_EXTERN, "%s", b->error.c_str());
    try {
        return give_text(StepText::header(name) + written(only_solid(get(b, shape)), product), text, n);
    } catch (...) {
        return err_set(ERR_EXTERN, "STEP: %s", thrown_text().c_str());
    }
}

} // extern "C"
