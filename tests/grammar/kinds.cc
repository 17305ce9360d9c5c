// kinds DIR: STEP files of every kind of curve, surface, shell and model that OpenCASCADE writes, in AP203, AP214 and
// AP242, with colours and names, as parts and assemblies: what lib/schema.tsv learns besides the files that we have
// (scripts/schema-table.sh compiles and runs this).
#include <BRepAlgoAPI_Cut.hxx>
#include <BRepBuilderAPI_MakeEdge.hxx>
#include <BRepBuilderAPI_MakeFace.hxx>
#include <BRepBuilderAPI_MakeVertex.hxx>
#include <BRepBuilderAPI_MakeWire.hxx>
#include <BRepBuilderAPI_Transform.hxx>
#include <BRepPrimAPI_MakeBox.hxx>
#include <BRepPrimAPI_MakeCone.hxx>
#include <BRepPrimAPI_MakeCylinder.hxx>
#include <BRepPrimAPI_MakePrism.hxx>
#include <BRepPrimAPI_MakeRevol.hxx>
#include <BRepPrimAPI_MakeSphere.hxx>
#include <BRepPrimAPI_MakeTorus.hxx>
#include <BRep_Builder.hxx>
#include <Geom_BSplineSurface.hxx>
#include <Geom_BezierCurve.hxx>
#include <Geom_BezierSurface.hxx>
#include <Geom_OffsetCurve.hxx>
#include <Geom_OffsetSurface.hxx>
#include <Geom_RectangularTrimmedSurface.hxx>
#include <Geom_TrimmedCurve.hxx>
#include <Geom_Ellipse.hxx>
#include <Geom_Circle.hxx>
#include <GeomAPI_PointsToBSpline.hxx>
#include <GeomAPI_PointsToBSplineSurface.hxx>
#include <GeomConvert.hxx>
#include <Interface_Static.hxx>
#include <Message.hxx>
#include <Message_PrinterOStream.hxx>
#include <Quantity_Color.hxx>
#include <Quantity_ColorRGBA.hxx>
#include <STEPCAFControl_Writer.hxx>
#include <STEPControl_Writer.hxx>
#include <TCollection_AsciiString.hxx>
#include <TColgp_Array1OfPnt.hxx>
#include <TColgp_Array2OfPnt.hxx>
#include <TDataStd_Name.hxx>
#include <TDocStd_Document.hxx>
#include <TopExp_Explorer.hxx>
#include <TopoDS.hxx>
#include <TopoDS_Compound.hxx>
#include <XCAFApp_Application.hxx>
#include <XCAFDoc_ColorTool.hxx>
#include <XCAFDoc_DocumentTool.hxx>
#include <XCAFDoc_LayerTool.hxx>
#include <XCAFDoc_ShapeTool.hxx>
#include <gp_Elips.hxx>
#include <gp_Hypr.hxx>
#include <gp_Parab.hxx>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

static std::vector<TopoDS_Shape> shapes()
{
    std::vector<TopoDS_Shape> out;
    auto add = [&](const std::function<TopoDS_Shape()> &f) {
        try {
            TopoDS_Shape s = f();
            if (!s.IsNull())
                out.push_back(s);
        } catch (const Standard_Failure &e) {
            fprintf(stderr, "kinds: %s: %s\n", e.DynamicType()->Name(), e.GetMessageString());
        }
    };
    TColgp_Array1OfPnt p(1, 5);
    for (int i = 1; i <= 5; i++)
        p(i) = gp_Pnt(10 + 3 * std::sin(i), 0, 4 * i);
    TColgp_Array2OfPnt g(1, 4, 1, 4);
    for (int i = 1; i <= 4; i++)
        for (int k = 1; k <= 4; k++)
            g(i, k) = gp_Pnt(10 * i, 10 * k, 3 * std::sin(i * k));
    Handle(Geom_BSplineCurve) spline = GeomAPI_PointsToBSpline(p).Curve();
    Handle(Geom_BSplineSurface) sheet = GeomAPI_PointsToBSplineSurface(g).Surface();
    const gp_Ax2 ax(gp_Pnt(0, 0, 0), gp_Dir(0, 0, 1));
    std::vector<TopoDS_Edge> edges = {
        BRepBuilderAPI_MakeEdge(gp_Elips(ax, 9, 4)), BRepBuilderAPI_MakeEdge(gp_Circ(ax, 7)), BRepBuilderAPI_MakeEdge(gp_Circ(ax, 7), 0, 2),
        BRepBuilderAPI_MakeEdge(gp_Hypr(ax, 4, 3), -1, 1), BRepBuilderAPI_MakeEdge(gp_Parab(ax, 3), -5, 5), BRepBuilderAPI_MakeEdge(spline),
        BRepBuilderAPI_MakeEdge(gp_Pnt(1, 2, 3), gp_Pnt(4, 5, 6)), BRepBuilderAPI_MakeEdge(new Geom_BezierCurve(p)),
        BRepBuilderAPI_MakeEdge(new Geom_OffsetCurve(new Geom_Ellipse(ax, 9, 4), 1, gp_Dir(0, 0, 1))),
        BRepBuilderAPI_MakeEdge(GeomConvert::CurveToBSplineCurve(new Geom_Circle(ax, 5))),
        BRepBuilderAPI_MakeEdge(new Geom_TrimmedCurve(new Geom_Ellipse(ax, 9, 4), 0.3, 1.7)),
    };
    for (const TopoDS_Edge &e : edges) {
        add([&] { return e; });
        add([&] { return BRepBuilderAPI_MakeWire(e).Wire(); });
        add([&] { return BRepPrimAPI_MakePrism(e, gp_Vec(0, 1, 6)).Shape(); });
        add([&] { return BRepPrimAPI_MakeRevol(e, gp_Ax1(gp_Pnt(30, 0, 0), gp_Dir(0, 1, 0)), 2.0).Shape(); });
        add([&] { return BRepPrimAPI_MakeRevol(e, gp_Ax1(gp_Pnt(30, 0, 0), gp_Dir(0, 1, 0))).Shape(); });
    }
    for (int i = 0; i < 2; i++) {
        TopoDS_Face f = BRepBuilderAPI_MakeFace(BRepBuilderAPI_MakeWire(edges[i]).Wire());
        add([&] { return BRepPrimAPI_MakePrism(f, gp_Vec(1, 1, 6)).Shape(); });
        add([&] { return BRepPrimAPI_MakeRevol(f, gp_Ax1(gp_Pnt(30, 0, 0), gp_Dir(0, 1, 0)), 2.0).Shape(); });
    }
    add([&] { return BRepBuilderAPI_MakeFace(sheet, 1e-6).Shape(); });
    add([&] { return BRepBuilderAPI_MakeFace(new Geom_BezierSurface(g), 1e-6).Shape(); });
    add([&] { return BRepBuilderAPI_MakeFace(new Geom_OffsetSurface(sheet, 2), 1e-6).Shape(); });
    add([&] { return BRepBuilderAPI_MakeFace(new Geom_RectangularTrimmedSurface(sheet, 0.2, 0.7, 0.1, 0.8), 1e-6).Shape(); });
    add([&] { return BRepBuilderAPI_MakeFace(GeomConvert::SurfaceToBSplineSurface(new Geom_RectangularTrimmedSurface(new Geom_BezierSurface(g), 0.2, 0.7, 0.1, 0.8)), 1e-6).Shape(); });
    add([] { return BRepPrimAPI_MakeBox(10, 20, 30).Shape(); });
    add([] { return BRepPrimAPI_MakeCylinder(5, 9).Shape(); });
    add([] { return BRepPrimAPI_MakeCone(5, 0, 9).Shape(); });
    add([] { return BRepPrimAPI_MakeSphere(5).Shape(); });
    add([] { return BRepPrimAPI_MakeTorus(9, 3).Shape(); });
    add([] { return BRepPrimAPI_MakeTorus(3, 5).Shape(); });
    add([] { return BRepAlgoAPI_Cut(BRepPrimAPI_MakeBox(30, 30, 30).Shape(), BRepPrimAPI_MakeSphere(gp_Pnt(15, 15, 15), 5).Shape()).Shape(); });
    add([] { return BRepBuilderAPI_MakeVertex(gp_Pnt(1, 2, 3)).Shape(); });
    add([] { return TopExp_Explorer(BRepPrimAPI_MakeBox(1, 2, 3).Shape(), TopAbs_SHELL).Current(); });
    add([] { /* open shell, solids and wires together, one part twice */
        BRep_Builder b;
        TopoDS_Shell s;
        TopoDS_Compound c;
        b.MakeShell(s);
        int n = 0;
        for (TopExp_Explorer x(BRepPrimAPI_MakeBox(1, 2, 3).Shape(), TopAbs_FACE); x.More() && n < 4; x.Next(), n++)
            b.Add(s, x.Current());
        b.MakeCompound(c);
        b.Add(c, s);
        TopoDS_Shape box = BRepPrimAPI_MakeBox(4, 2, 3).Shape();
        gp_Trsf t;
        t.SetTranslation(gp_Vec(9, 9, 9));
        b.Add(c, box);
        b.Add(c, box.Moved(TopLoc_Location(t)));
        b.Add(c, BRepBuilderAPI_MakeEdge(gp_Pnt(0, 0, 0), gp_Pnt(1, 1, 1)).Shape());
        return TopoDS_Shape(c);
    });
    return out;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    Message::DefaultMessenger()->RemovePrinters(STANDARD_TYPE(Message_PrinterOStream));
    std::vector<TopoDS_Shape> all = shapes();
    int n = 0, failed = 0;
    auto name = [&](const char *what) { return std::string(argv[1]) + "/" + what + std::to_string(n++) + ".step"; };
    const STEPControl_StepModelType modes[] = {STEPControl_AsIs, STEPControl_ManifoldSolidBrep, STEPControl_FacetedBrep, STEPControl_ShellBasedSurfaceModel,
                                               STEPControl_GeometricCurveSet};
    for (const char *schema : {"AP203", "AP214IS", "AP242DIS"})
        for (int curves = 0; curves < 2; curves++)
            for (const TopoDS_Shape &s : all)
                for (STEPControl_StepModelType mode : modes) {
                    STEPControl_Writer w; /* makes the parameters */
                    Interface_Static::SetCVal("write.step.schema", schema);
                    Interface_Static::SetCVal("write.step.unit", curves ? "INCH" : "MM");
                    Interface_Static::SetIVal("write.surfacecurve.mode", curves);
                    Interface_Static::SetIVal("write.step.assembly", 2);
                    try {
                        if (w.Transfer(s, mode) != IFSelect_RetDone || w.Write(name("m").c_str()) != IFSelect_RetDone)
                            failed++;
                    } catch (const Standard_Failure &) {
                        failed++;
                    }
                }
    for (const char *schema : {"AP203", "AP214IS", "AP242DIS"}) {
        Handle(TDocStd_Document) doc;
        XCAFApp_Application::GetApplication()->NewDocument("MDTV-XCAF", doc);
        Handle(XCAFDoc_ShapeTool) shape = XCAFDoc_DocumentTool::ShapeTool(doc->Main());
        Handle(XCAFDoc_ColorTool) colour = XCAFDoc_DocumentTool::ColorTool(doc->Main());
        Handle(XCAFDoc_LayerTool) layer = XCAFDoc_DocumentTool::LayerTool(doc->Main());
        const Quantity_NameOfColor colours[] = {Quantity_NOC_RED, Quantity_NOC_BLUE4, Quantity_NOC_GREEN, Quantity_NOC_CORAL};
        for (size_t i = 0; i < all.size(); i++) {
            TDF_Label l = shape->AddShape(all[i], true);
            TDataStd_Name::Set(l, TCollection_ExtendedString(("part" + std::to_string(i)).c_str()));
            colour->SetColor(l, Quantity_Color(colours[i % 4]), XCAFDoc_ColorGen);
            if (i % 3 == 0)
                colour->SetColor(l, Quantity_ColorRGBA(0.2f, 0.4f, 0.6f, 0.5f), XCAFDoc_ColorSurf);
            for (TopExp_Explorer x(all[i], TopAbs_FACE); x.More() && i % 2; x.Next())
                colour->SetColor(x.Current(), Quantity_Color(colours[(i + 1) % 4]), XCAFDoc_ColorSurf);
            for (TopExp_Explorer x(all[i], TopAbs_EDGE); x.More() && i % 5 == 0; x.Next())
                colour->SetColor(x.Current(), Quantity_Color(colours[(i + 2) % 4]), XCAFDoc_ColorCurv);
            layer->SetLayer(l, TCollection_ExtendedString(i % 2 ? "one" : "two"));
        }
        STEPCAFControl_Writer w;
        Interface_Static::SetCVal("write.step.schema", schema);
        w.SetColorMode(true);
        w.SetNameMode(true);
        w.SetLayerMode(true);
        w.SetPropsMode(true);
        try {
            if (!w.Transfer(doc, STEPControl_AsIs) || w.Write(name("x").c_str()) != IFSelect_RetDone)
                failed++;
        } catch (const Standard_Failure &) {
            failed++;
        }
    }
    printf("%d files, %d combinations that OpenCASCADE does not write\n", n, failed);
    return 0;
}
